"""Advice about versions, one line each: this client against the engine and the cluster, and Python for UDFs."""

from __future__ import annotations

import platform
import re
import sys
import threading
from typing import Any, Callable, Sequence

from ._pyspark import minor

_NUMBER = re.compile(r"\d+(\.\d+)+")


def advice(client: str, engine: str, engine_version: str, cluster: str, supported: Sequence[str]) -> list[str]:
    """What does not fit. ``supported`` are the client versions of the cluster, such as "pyspark-client 4.1"."""
    lines = []
    ours, theirs = minor(client), minor(engine_version)
    wanted = [text for text in supported if "python" not in text.lower().split()]
    if wanted and not any(_is_of(client, text) for text in wanted):
        lines.append(
            f"PySpark {client} is not a client that the cluster {cluster} names ({', '.join(wanted)}): "
            f"some calls may fail. Next: pip install one of these"
        )
    elif ours is not None and theirs is not None and ours > theirs:
        lines.append(
            f"PySpark {client} is newer than {engine} here (Spark {engine_version}): what is new in "
            f"{ours[0]}.{ours[1]} fails. Next: pip install 'pyspark-client=={theirs[0]}.{theirs[1]}.*'"
        )
    pythons = [found[0] for text in supported if text.lower().startswith("python ") and (found := _NUMBER.search(text))]
    here = platform.python_version()
    if pythons and not any(_is_of(here, text) for text in pythons):
        lines.append(python_line(here, " or ".join(pythons)))
    return lines


def python_line(here: str, there: str) -> str:
    """That UDFs need another Python."""
    return (
        f"Python {here} here and Python {there} on the engine differ in the minor version: Python UDFs fail. "
        f"Next: use Python {'.'.join(there.split('.')[:2])} here; SQL and DataFrames work as they are"
    )


def check_python(spark: Any, show: Callable[[str], None]) -> threading.Thread:
    """Asks Sail for its Python in the background, by a UDF that needs no pickled code, and shows a difference.

    Apache Spark compares both itself and names them in the error of the UDF; there this query would start a
    Python worker for sessions that never use one.
    """

    def ask() -> None:
        try:
            there = engine_python(spark)
        except Exception:  # noqa: BLE001 - advice only: later queries report the cause
            return
        if minor(there) != sys.version_info[:2]:
            show(python_line(platform.python_version(), there))

    thread = threading.Thread(target=ask, name="berth-python-version", daemon=True)
    thread.start()
    return thread


def engine_python(spark: Any) -> str:
    """The Python of the engine."""
    from pyspark.sql.connect.functions import udf

    # Pickled by its name, because it is a function of the standard library.
    version = udf(platform.python_version)
    return str(spark.range(1).select(version().alias("python")).collect()[0]["python"])


def _is_of(version: str, line: str) -> bool:
    """Whether 4.1.3 is of "pyspark-client 4.1"."""
    found = _NUMBER.search(line)
    if found is None:
        return False
    return version == found[0] or version.startswith(found[0] + ".")
