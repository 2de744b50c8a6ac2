"""The token of one session: issued, and renewed before it expires."""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Callable, NoReturn, Protocol

from ._secret import Secret
from .errors import BerthError, ServerError

_log = logging.getLogger("berth")

#: The part of its life after which a token is renewed: 40 s of 60 s, 40 min of an hour.
_RENEW_AFTER = 2 / 3
#: A token counts as expired this long before it is, so that it is still good when it arrives.
_MARGIN = 2.0
#: Pauses between attempts to renew: after a temporary failure, and after a final one.
_PAUSE, _LONG_PAUSE = 2.0, 30.0


@dataclass(frozen=True)
class Issued:
    """A session token as token-issuer returned it."""

    token: Secret
    lifetime: float
    endpoint: str
    tls: bool


class TokenSource(Protocol):
    """What a channel asks for the token of each call."""

    def current(self) -> Secret: ...


class SessionTokens:
    """The current token of a session. Thread-safe; one renewal at a time.

    The age of a token is the larger one by two clocks. The monotonic clock stands still while the machine is
    suspended, and the wall clock can be set back. PySpark copies its channel builder deeply, so a copy of this
    object is the object itself.
    """

    def __init__(self, session: str, issue: Callable[[], Issued]) -> None:
        self.session = session
        self._issue = issue
        self._lock = threading.Lock()
        self._renewing: threading.Thread | None = None
        self._failure: BerthError | None = None
        self._reported = ""
        self._next_attempt = 0.0
        self._take(issue())
        _sources.add(self)

    def __repr__(self) -> str:
        return f"<tokens of {self.session}>"

    def __copy__(self) -> SessionTokens:
        return self

    def __deepcopy__(self, memo: object) -> SessionTokens:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("tokens are not pickled: call berth.connect() where the session is needed")

    @property
    def issued(self) -> Issued:
        """The newest token with its endpoint."""
        return self._issued

    def current(self) -> Secret:
        """The token for a call that starts now.

        A token that is due is renewed in the background while it still serves. Once it has expired the caller
        waits for the renewal. After a temporary failure this raises an error, and PySpark repeats the call. After
        a final one it returns the old token, because spark-proxy then answers with the cause immediately.
        """
        age = self._age()
        if age < self._renew_after:
            return self._issued.token
        if age < self._expires_after:
            self._renew_in_background()
            return self._issued.token
        with self._lock:
            if self._age() >= self._expires_after:
                self._renew()
        failure = self._failure
        if failure is not None and failure.is_temporary:
            # A copy: an error that is raised again and again collects the frames of all callers.
            raise copy.copy(failure)
        return self._issued.token

    def renew(self, issue: Callable[[], Issued]) -> None:
        """Issues a new token now, and by ``issue`` from now on.

        After a temporary failure the present token serves as long as it is valid.
        """
        with self._lock:
            try:
                self._take(issue())
            except BerthError as error:
                if not error.is_temporary or self._age() >= self._expires_after:
                    raise
            self._issue = issue

    def _age(self) -> float:
        """Seconds since the present token was received."""
        return max(time.monotonic() - self._taken[0], time.time() - self._taken[1])

    def _renew_in_background(self) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._renewing is None or not self._renewing.is_alive():
                self._renewing = threading.Thread(target=self._renew_locked, name="berth-token", daemon=True)
                self._renewing.start()
        except RuntimeError:
            # The interpreter is ending; the old token still serves.
            self._renewing = None
        finally:
            self._lock.release()

    def _renew_locked(self) -> None:
        with self._lock:
            if self._age() >= self._renew_after:
                self._renew()

    def _renew(self) -> None:
        """The caller holds the lock."""
        if time.monotonic() < self._next_attempt:
            return
        try:
            self._take(self._issue())
        except BerthError as error:
            # A copy holds no frames and no cause.
            self._fail(copy.copy(error))
        except Exception as error:  # noqa: BLE001 - in the background thread Python would print a traceback
            self._fail(
                ServerError(
                    f"The renewal ended with {type(error).__name__}.",
                    next_step="call berth.connect() again, and tell your platform team the text and the time",
                )
            )

    def _fail(self, error: BerthError) -> None:
        pause = min(error.retry_after or _PAUSE, _LONG_PAUSE) if error.is_temporary else _LONG_PAUSE
        self._next_attempt = time.monotonic() + pause
        self._failure = error
        self._report(error)

    def _take(self, issued: Issued) -> None:
        self._issued = issued
        self._taken = (time.monotonic(), time.time())
        self._failure = None
        self._reported = ""
        self._next_attempt = 0.0
        self._renew_after = issued.lifetime * _RENEW_AFTER
        self._expires_after = max(issued.lifetime - _MARGIN, self._renew_after)

    def _report(self, error: BerthError) -> None:
        """Prints a final error once, because PySpark only shows that the token has expired."""
        _log.debug("renewing the token of %s failed: %s", self.session, error.reason)
        if not error.is_temporary and error.reason != self._reported:
            self._reported = error.reason
            print(f"berth: the token of {self.session} was not renewed: {error}", file=sys.stderr)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._renewing = None


_sources: "weakref.WeakSet[SessionTokens]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A lock that another thread of the parent held is never released in the child.
    for source in list(_sources):
        source._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
