"""The notebook extension: ``%berth`` and ``%%sql``."""

from __future__ import annotations

import argparse
import shlex
from typing import Any, NoReturn

from . import _session
from ._connect import connect
from ._progress import Progress
from ._session import Session
from ._sql import parameters
from ._time import parse_time
from .errors import BerthError, ClientError, ConfigurationError, PermissionDenied

_ROWS = 100
_HELP = """%berth connect [--cluster C] [--catalog C] [--name N] [--idle 30m] [--label K=V]… [--session ID] [--context C]
    connects, and sets `spark`; run again, it returns the same session; with other options
    it closes the former session if that has no name
%berth status       the session
%berth interrupt    interrupts its running queries
%berth close        ends it
%%sql [--limit N] [--out NAME]
    runs the cell; :name is the value of the variable `name`; --out keeps the DataFrame"""


class _Parser(argparse.ArgumentParser):
    """Raises an error in place of an exit of the kernel."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.prog}: {message}.", next_step="%berth help shows the commands")


def _connect_parser() -> _Parser:
    parser = _Parser(prog="%berth connect", add_help=False, allow_abbrev=False)
    for option in ("--cluster", "--catalog", "--name", "--idle", "--session", "--context", "--profile", "--team"):
        parser.add_argument(option)
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--timeout", default="300s")
    parser.add_argument("--token-ttl")
    return parser


def _sql_parser() -> _Parser:
    parser = _Parser(prog="%%sql", add_help=False, allow_abbrev=False)
    parser.add_argument("--limit", type=int, default=_ROWS)
    parser.add_argument("--out")
    return parser


class Extension:
    """The magics of one shell, and its session."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._session: Session | None = None
        self._line: str | None = None

    def berth(self, line: str) -> Any:
        """``%berth``: see ``%berth help``."""
        command, _, rest = line.strip().partition(" ")
        commands = {"connect": self._connect, "status": self._status, "interrupt": self._interrupt, "close": self._close}
        if command in ("", "help"):
            print(_HELP)
            return None
        if command not in commands:
            raise ConfigurationError(f"%berth has no command {command!r}.", next_step="%berth help shows the commands")
        return commands[command](rest)

    def sql(self, line: str, cell: str) -> Any:
        """``%%sql``: runs the cell, binds ``:name``, and returns the first rows."""
        options = _sql_parser().parse_args(shlex.split(line))
        if options.limit < 1:
            raise ConfigurationError("--limit is less than 1.", next_step="give --limit a number of rows")
        text = cell.strip().rstrip(";")
        if not text:
            raise ConfigurationError("The cell has no SQL.", next_step="write one statement below %%sql")
        spark = self._spark()
        bar = QueryProgress(spark)
        try:
            # 3.5 ends the query on the engine by itself too: see _pyspark.
            frame = spark.sql(text, args=self._values(text)) if parameters(text) else spark.sql(text)
            if options.out:
                self._shell.user_ns[options.out] = frame
            shown = frame.limit(options.limit + 1).toPandas()
        finally:
            bar.close()
        if not len(shown.columns):
            return None
        if len(shown) > options.limit:
            print(f"berth: the first {options.limit} rows; --limit shows more, --out keeps the DataFrame")
        return shown.head(options.limit)

    def _values(self, text: str) -> dict[str, Any]:
        names = parameters(text)
        missing = [name for name in names if name not in self._shell.user_ns]
        if missing:
            raise ConfigurationError(
                f"There is no variable for :{missing[0]}.", next_step=f"set {missing[0]} in a cell before this one"
            )
        return {name: self._shell.user_ns[name] for name in names}

    # ---- %berth ------------------------------------------------------------------------------------------------

    def _connect(self, line: str) -> None:
        options = _options(line)
        former = self._session
        if former is not None and line == self._line and _is_live(former):
            self._session = _connect_again(former, options)
            print(f"berth: still connected to {former.id}")
        else:
            self._session = _session.session_of(connect(**options))
            self._line = line
            if former is not None and former.id != self._session.id:
                _leave(former)
        self._shell.user_ns["spark"] = self._session.spark

    def _status(self, _: str) -> None:
        session = self._current()
        name = f" {session.name!r}" if session.name else ""
        print(f"{session.id}{name} on {session.cluster}: {session.status}. {session.status_message}")

    def _interrupt(self, _: str) -> None:
        ended = self._current().interrupt()
        print(f"berth: interrupted {len(ended)} operation{'' if len(ended) == 1 else 's'}")

    def _close(self, _: str) -> None:
        session = self._current()
        session.close()
        self._session = None
        if self._shell.user_ns.get("spark") is session.spark:
            del self._shell.user_ns["spark"]
        print(f"berth: closed {session.id}")

    def _current(self) -> Session:
        if self._session is not None:
            return self._session
        try:
            return _session.session_of(self._shell.user_ns.get("spark"))
        except ClientError:
            raise ConfigurationError("This notebook is not connected.", next_step="%berth connect") from None

    def _spark(self) -> Any:
        """What the notebook calls ``spark``, else the session of ``%berth connect``."""
        spark = self._shell.user_ns.get("spark")
        return spark if hasattr(spark, "sql") else self._current().spark


def _options(line: str) -> dict[str, Any]:
    """The arguments of connect()."""
    options = vars(_connect_parser().parse_args(shlex.split(line)))
    labels = [text.partition("=") for text in options.pop("label")]
    if not all(separator and key for key, separator, _ in labels):
        raise ConfigurationError("A label is not KEY=VALUE.", next_step="write --label team=data")
    options["labels"] = {key: value for key, _, value in labels}
    options["timeout"] = parse_time("--timeout", options["timeout"])
    return options


def _is_live(session: Session) -> bool:
    try:
        return session.status in ("pending", "active", "idle")
    except PermissionDenied:
        # Berth no longer lists it.
        return False


def _connect_again(session: Session, options: dict[str, Any]) -> Session:
    """The same session with a new token, and with a new SparkSession if that was stopped."""
    kept = {name: options[name] for name in ("context", "timeout", "token_ttl")}
    return _session.session_of(connect(session.id, progress=False, **kept))


def _leave(session: Session) -> None:
    """Closes the session of the former %berth connect if only this notebook can name it."""
    if not _session.is_owned(session.id):
        return
    try:
        session.close()
    except PermissionDenied:
        # Berth no longer lists it.
        _session.forget(session.id)
    except BerthError as error:
        print(f"berth: the former session {session.id} was not closed: {error}")
    else:
        print(f"berth: closed the former session {session.id}")


class QueryProgress:
    """What a query does: its seconds, and its tasks where engine and PySpark report them (Spark, PySpark 4)."""

    def __init__(self, spark: Any) -> None:
        self._progress = Progress()
        self._progress.show("running")
        self._spark = spark
        # 3.5 has none, and shows the seconds only.
        self._registers = hasattr(spark, "registerProgressHandler")
        if self._registers:
            spark.registerProgressHandler(self._handle)

    def close(self) -> None:
        """Removes the line."""
        if self._registers:
            self._spark.removeProgressHandler(self._handle)
        self._progress.close()

    def _handle(self, stages: Any, inflight_tasks: int, operation_id: Any, done: bool) -> None:
        total = sum(stage.num_tasks for stage in stages or ())
        if total and not done:
            finished = sum(stage.num_completed_tasks for stage in stages)
            self._progress.show(f"{bar(finished, total)} {finished} of {total} tasks, {inflight_tasks} running")


def bar(done: int, total: int, width: int = 20) -> str:
    """A bar of text."""
    filled = width * done // total
    return "█" * filled + "░" * (width - filled)


def load(shell: Any) -> None:
    """Registers the magics."""
    extension = Extension(shell)
    shell.register_magic_function(extension.berth, "line", "berth")
    shell.register_magic_function(extension.sql, "cell", "sql")


def unload(shell: Any) -> None:
    """Removes the magics."""
    for kind, name in (("line", "berth"), ("cell", "sql")):
        shell.magics_manager.magics[kind].pop(name, None)
