"""Calls of session-manager and token-issuer, and the conversion of their errors."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Iterator, Type, TypeVar
from urllib.parse import urlsplit

from . import _messages as m
from ._channel import import_grpc, open_channel
from ._credential import Credential
from ._secret import bearer
from ._settings import Settings
from ._wire import decode, encode
from .errors import BerthError, ConfigurationError, ServerError, Unreachable, of_reason

if TYPE_CHECKING:
    import grpc

R = TypeVar("R")

CALL_TIMEOUT = 30.0
#: The least pauses before another attempt at a call that failed temporarily.
_RETRY_PAUSES = (0.2, 0.5, 1.0)
#: The longest sum of the pauses of one call; an error that asks for more is raised.
_MAX_PAUSES = 10.0
_DOMAIN = "berth"


class ControlPlane:
    """The APIs of one installation with one credential. Each use opens a channel of its own.

    So nothing is shared between threads or inherited by a forked process.
    """

    def __init__(self, settings: Settings, credential: Credential) -> None:
        self.settings = settings
        self.credential = credential

    @contextlib.contextmanager
    def manager(self) -> Iterator[Api]:
        """session-manager."""
        with self._open(self.settings.manager, "session-manager") as api:
            yield api

    @contextlib.contextmanager
    def issuer(self) -> Iterator[Api]:
        """token-issuer."""
        with self._open(self.settings.issuer, "token-issuer") as api:
            yield api

    @contextlib.contextmanager
    def _open(self, address: str, what: str) -> Iterator[Api]:
        channel = open_channel(urlsplit(address).netloc, self.settings.security(address))
        try:
            yield Api(channel, f"{what} at {address}", self.credential)
        finally:
            channel.close()


class Api:
    """The methods of one service."""

    def __init__(self, channel: "grpc.Channel", address: str, credential: Credential) -> None:
        self._channel = channel
        self._address = address
        self._credential = credential

    def call(self, service: str, request: Any, reply: Type[R], timeout: float = CALL_TIMEOUT, patient: bool = True) -> R:
        """Calls the method that the class of the request names; a patient call is repeated after temporary errors."""
        grpc = import_grpc()
        method = type(request).__name__[: -len("Request")]
        rpc = self._channel.unary_unary(
            f"/berth.v1.{service}/{method}",
            request_serializer=encode,
            response_deserializer=lambda data: decode(reply, data),
        )
        left = _MAX_PAUSES
        for least in [*(_RETRY_PAUSES if patient else ()), None]:
            try:
                # Metadata and no call credential, which needs a thread: none starts while Python exits.
                metadata = (bearer(self._credential.secret()),)
                return rpc(request, timeout=timeout, metadata=metadata)  # type: ignore[no-any-return]
            except grpc.RpcError as error:
                failure = self._error(error)
                pause = max(least or 0.0, failure.retry_after or 0.0)
                if least is None or not failure.is_temporary or pause > left:
                    raise failure from None
            left -= pause
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _error(self, error: Any) -> BerthError:
        reason, retry_after = details_of(error)
        text = error.details() or error.code().name
        if reason is not None:
            return of_reason(reason, text, retry_after)
        code = error.code().name
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            return Unreachable(
                f"{self._address} does not answer: {text.splitlines()[0]}.",
                next_step="check manager= and issuer= (BERTH_MANAGER, BERTH_ISSUER) and ca=; "
                "`berth doctor` finds the cause",
            )
        if code == "UNIMPLEMENTED":
            return ConfigurationError(
                f"{self._address} does not serve this call.",
                next_step="check the addresses: manager is port 8081, issuer is port 8083; the server may be older",
            )
        return ServerError(
            f"{self._address} answers with {code}: {text}.", next_step="`berth doctor` finds the cause", reason=code
        )


def details_of(error: Any) -> tuple[str | None, float | None]:
    """The reason of an error of Berth, and the seconds of its RetryInfo."""
    reason: str | None = None
    retry_after: float | None = None
    for key, value in error.trailing_metadata() or ():
        if key == "berth-reason":
            reason = reason or str(value)
        elif key == "grpc-status-details-bin":
            with contextlib.suppress(ValueError):
                for detail in decode(m.RpcStatus, value).details:
                    kind = detail.type_url.rpartition("/")[2]
                    if kind == "google.rpc.ErrorInfo":
                        info = decode(m.ErrorInfo, detail.value)
                        reason = info.reason if info.domain == _DOMAIN else reason
                    elif kind == "google.rpc.RetryInfo":
                        delay = decode(m.RetryInfo, detail.value).retry_delay or m.Duration()
                        retry_after = delay.seconds + delay.nanos / 1e9
    return reason, retry_after
