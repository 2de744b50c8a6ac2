"""Tests on the whole of Berth: real services, Redis, Sail and Apache Spark, and the PySpark that runs them.

`cargo test -p e2e python_package` (make test-python) starts the services and sets BERTH_TEST, a JSON object:
manager, issuer, ca, keys (account = key), berth (the command), engine, tls, and oidc with the helper that signs in.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from unittest import mock

import pytest

import berth
from berth import _session

STACK = json.loads(os.environ.get("BERTH_TEST", "null"))
ENGINE = STACK and STACK["engine"]
#: Apache Spark takes a quarter of a minute to start, more beside other tests.
START = 300
LINE = tuple(int(part) for part in __import__("pyspark").__version__.split(".")[:2])

#: PySpark 4.2 cannot read a limit of Sail 0.7.2 for local data ("3GB" instead of bytes), with and without Berth.
LOCAL_DATA = not (ENGINE == "sail" and LINE >= (4, 2))

on_sail = pytest.mark.skipif(ENGINE != "sail", reason="for Sail")
on_spark = pytest.mark.skipif(ENGINE != "spark", reason="for Apache Spark")


def pytest_configure():
    if STACK is None:
        raise pytest.UsageError("BERTH_TEST is not set: run `make test-python`, or `cargo test -p e2e python_package`")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """ada's settings, and none of this machine."""
    for name in [name for name in os.environ if name.startswith("BERTH_") and name != "BERTH_TEST"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BERTH_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("BERTH_MANAGER", STACK["manager"])
    monkeypatch.setenv("BERTH_ISSUER", STACK["issuer"])
    monkeypatch.setenv("BERTH_KEY", STACK["keys"]["ada"])
    if STACK["tls"]:
        monkeypatch.setenv("BERTH_CA", STACK["ca"])
    return monkeypatch


@pytest.fixture(autouse=True)
def nothing_remains():
    """The next test begins without sessions of this process."""
    yield
    for session in list(_session._sessions.values()):
        session.close()


@pytest.fixture
def name():
    """A name that no other test uses."""
    return f"t-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """This Python with this PySpark as a kernel of Jupyter."""
    folder = tmp_path / "kernels" / "berth-test"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "test", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return "berth-test"


def command(*args, key="ada"):
    """What the berth command answers: an observer beside the package."""
    env = {**os.environ, "BERTH_KEY": STACK["keys"][key]}
    done = subprocess.run(
        [STACK["berth"], "--output", "json", *args], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    try:
        return json.loads(done.stdout)
    except ValueError:
        return done.stdout


def status_of(session_id):
    return command("session", "describe", session_id)["status"]


def live_named(name):
    return [one["id"] for one in command("session", "list") if one["name"] == name]


def until(what, check, limit=60.0):
    """Waits for a condition; fails with its last value."""
    end = time.monotonic() + limit
    while True:
        last = check()
        if last:
            return last
        if time.monotonic() > end:
            pytest.fail(f"{what}: still {last!r} after {limit} s")
        time.sleep(0.2)


def python(program, *args, **variables):
    """Runs a program with this Python and PySpark to its end; returns what it printed."""
    env = {**os.environ, **variables}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        # PySpark 4.2 does not run in `python -c`.
        file.write(program)
        file.flush()
        command = [sys.executable, file.name, *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def one(spark):
    """A query of each kind of call that PySpark makes."""
    assert spark.sql("SELECT 1 AS one").collect()[0]["one"] == 1
    return spark.range(10).count()


def sleeps(seconds, rows=1):
    """A UDF that waits on the engine, without work."""
    from pyspark.sql.connect.functions import udf
    from pyspark.sql.types import LongType

    def wait(value):
        import time

        time.sleep(seconds)
        return value + 41

    return udf(wait, LongType())


def endless(spark):
    """A query that only an interrupt ends. Sail cannot interrupt a UDF, and Spark no plan that is too simple."""
    if ENGINE == "sail":
        return spark.sql("SELECT sum(id) AS total FROM range(1000000000000)")
    return spark.range(1).select(sleeps(100)("id"))


def secrets_of(session):
    """What must never be shown: the key, and the token of now."""
    return [STACK["keys"]["ada"], str(session._tokens.current())]


def renderings(error):
    """An error as plain Python, a debugger and a notebook show it, with all local variables."""
    from pyspark.sql.connect.dataframe import DataFrame

    # The repr of a DataFrame asks the engine for its columns, which refuses it too.
    with mock.patch.object(DataFrame, "__repr__", lambda _: "DataFrame[...]"):
        texts = [render(error) for render in (plain, with_locals, as_notebook)]
    innermost = traceback.extract_tb(error.__traceback__)[-1].name
    for text in texts:
        assert innermost in text and type(error).__name__ in text
    return texts


def plain(error):
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def with_locals(error):
    kept = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(kept.format())


def as_notebook(error):
    """%xmode Verbose."""
    from IPython.core.ultratb import VerboseTB

    return VerboseTB(theme_name="nocolor").text(type(error), error, error.__traceback__)


def assert_hidden(secrets, *texts):
    """No text contains a secret, whole or in a part that would serve."""
    for text in texts:
        for secret in secrets:
            for part in {secret, secret[:40], secret[-40:]}:
                at = text.find(part)
                assert at < 0, f"a secret is shown: …{re.sub(re.escape(part), '<HERE>', text[max(0, at - 200):at + 60])}"


class Interrupt:
    """Ctrl-C for the main thread after some seconds, as a terminal and Jupyter send it."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        self.old = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.old)


def engine():
    return {"cluster": ENGINE, "timeout": START}


def connect(**options):
    return berth.connect(**{**engine(), **options})
