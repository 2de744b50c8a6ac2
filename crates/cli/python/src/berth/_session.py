"""A session of Berth with its SparkSession, and the sessions of this process."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, NoReturn

from . import _messages as m
from . import _pyspark
from ._control import ControlPlane
from ._time import Time, parse_time
from ._tokens import Issued, SessionTokens
from .errors import ClientError, ServerError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_EXIT_TIMEOUT = 5.0


class Session:
    """A session of Berth. A context manager that closes it if :func:`berth.connect` created it. Thread-safe.

    :func:`berth.session` makes it, and ``spark.berth`` is that of a SparkSession.
    """

    def __init__(
        self, control: ControlPlane, record: m.Session, tokens: SessionTokens, spark: Any, created: bool
    ) -> None:
        self._control = control
        self._tokens = tokens
        self._lock = threading.Lock()
        self._closed = False
        self._created = created
        # Calls of connect() that returned it, less the `with` statements that ended.
        self._uses = 0
        # A forked process has this object too, but the session is its parent's.
        self._process = os.getpid()
        #: Its id, ``s-…``.
        self.id: str = record.id
        #: Its name; empty if it has none.
        self.name: str = record.name
        #: Its cluster.
        self.cluster: str = record.cluster
        #: Its default catalog; empty if it has none.
        self.catalog: str = record.catalog
        #: ``sail`` or ``spark``.
        self.engine: str = record.engine
        #: The release of Spark that the engine reports.
        self.engine_version: str = record.engine_version
        #: The SparkSession, whose token renews itself.
        self.spark: SparkSession = spark

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<berth.Session {self.id}{name} on {self.cluster}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a session of berth is not pickled: call berth.connect({self.id!r}) where it is needed")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            self._uses -= 1
            if self._uses > 0:
                return
        if self._created:
            self.close()
        else:
            self.stop_spark(release=True)

    def add_use(self) -> None:
        """Counts a connect() that returns this session, so that the last ``with`` statement ends it."""
        with self._lock:
            self._uses += 1

    @property
    def status(self) -> str:
        """``pending``, ``active``, ``idle``, ``closed`` or ``failed``, as Berth reports it now."""
        return status_name(self._describe())

    @property
    def status_message(self) -> str:
        """Why it has this status, in words."""
        return self._describe().status_message

    def interrupt(self) -> list[str]:
        """Interrupts all running operations of the session, from any thread or process; returns their ids."""
        request = m.InterruptOperationsRequest(self.id)
        with self._control.manager() as api:
            return api.call("SessionService", request, m.InterruptOperationsResponse).interrupted_operation_ids

    def keep_alive(self, duration: Time) -> None:
        """Pauses the idle timeouts for work without an open call, such as a streaming query ("2h", a timedelta)."""
        until = m.Timestamp.of(datetime.now(timezone.utc) + parse_time("duration", duration))
        with self._control.manager() as api:
            api.call("SessionService", m.KeepSessionAliveRequest(self.id, until), m.KeepSessionAliveResponse)

    def close(self) -> None:
        """Ends the session and its compute. Does nothing if it is closed, and in a forked process."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._closed:
                return
            self.stop_spark()
            with self._control.manager() as api:
                api.call("SessionService", m.CloseSessionRequest(self.id), m.CloseSessionResponse)
            self._closed = True
        _forget(self)

    def stop_spark(self, release: bool = False) -> None:
        """Ends the SparkSession. Without ``release`` the engine is not asked, because the session ends with it."""
        with contextlib.suppress(Exception):
            if not release and hasattr(self.spark, "release_session_on_close"):
                self.spark.release_session_on_close = False
            if not _pyspark.is_stopped(self.spark):
                self.spark.stop()

    def renew(self, control: ControlPlane, issue: Callable[[], Issued]) -> None:
        """Issues a new token, and uses this credential from now on."""
        self._tokens.renew(issue)
        self._control = control

    def is_usable(self) -> bool:
        """Whether it was not closed here, and its SparkSession was not stopped."""
        return not self._closed and not _pyspark.is_stopped(self.spark)

    def _describe(self) -> m.Session:
        with self._control.manager() as api:
            return described(api.call("SessionService", m.DescribeSessionRequest(self.id), m.DescribeSessionResponse))


def described(reply: Any) -> m.Session:
    """The session of a reply."""
    if reply.session is None:
        raise ServerError("Berth returned no session.", next_step="tell your platform team the text and the time")
    record: m.Session = reply.session
    return record


def status_name(record: m.Session) -> str:
    """The status as docs and the command write it."""
    try:
        return m.Status(record.status).name.lower()
    except ValueError:
        return f"status {record.status}"


# ---- the sessions of this process ------------------------------------------------------------------------------

_sessions: dict[str, Session] = {}
#: Sessions without a name that this process created: they are closed when Python exits.
_owned: dict[str, ControlPlane] = {}
_sessions_lock = threading.Lock()
_opening = threading.RLock()


def opening() -> contextlib.AbstractContextManager[Any]:
    """Held while a SparkSession is made, so that threads that want the same session share one."""
    return _opening


def remember(session: Session) -> None:
    """Keeps a session until it is closed, or Python exits."""
    with _sessions_lock:
        _sessions[session.id] = session


def find(session_id: str) -> Session | None:
    """The session of this process with this id, if it can be used."""
    with _sessions_lock:
        session = _sessions.get(session_id)
    return session if session is not None and session.is_usable() else None


def session_of(spark: Any) -> Session:
    """The session of a SparkSession that :func:`berth.connect` made, or of a clone of one."""
    tokens = _pyspark.tokens_of(spark)
    with _sessions_lock:
        session = _sessions.get(tokens.session) if isinstance(tokens, SessionTokens) else None
    if session is None:
        raise ClientError(
            "This SparkSession is not one of berth.connect(), or its session was closed.",
            next_step="use berth.connect()",
        )
    return session


def is_owned(session_id: str) -> bool:
    """Whether it is closed when Python exits."""
    return session_id in _owned


def forget(session_id: str) -> None:
    """Removes a session that is not returned, and stops its SparkSession."""
    with _sessions_lock:
        made = _sessions.pop(session_id, None)
        _owned.pop(session_id, None)
    if made is not None:
        made.stop_spark()


def _forget(session: Session) -> None:
    with _sessions_lock:
        if _sessions.get(session.id) is session:
            del _sessions[session.id]
        _owned.pop(session.id, None)


def _at_exit() -> None:
    # No call on Spark's channel: its call credentials need a thread, and none starts while Python exits.
    for session in list(_sessions.values()):
        session.stop_spark()
    for session_id, control in list(_owned.items()):
        with contextlib.suppress(Exception), control.manager() as api:
            request = m.CloseSessionRequest(session_id)
            api.call("SessionService", request, m.CloseSessionResponse, timeout=_EXIT_TIMEOUT, patient=False)


def _after_fork_in_child() -> None:
    # The sessions are the parent's, and their channels do not work here.
    global _sessions_lock, _opening
    _sessions_lock, _opening = threading.Lock(), threading.RLock()
    _sessions.clear()
    _owned.clear()


def close_at_exit(control: ControlPlane, owned: str | None) -> None:
    """Stops the SparkSessions when Python exits, and closes the session ``owned``.

    It runs before the exit calls of PySpark's clients that exist now, which would wake the session.
    """
    if owned is not None:
        _owned[owned] = control
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
