"""gRPC channels that put a credential into each call."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence, Tuple

from ._secret import Secret, bearer
from .errors import ClientError, ConfigurationError

if TYPE_CHECKING:
    import grpc

Options = Sequence[Tuple[str, Any]]

#: Where systems have their list of authorities.
_SYSTEM_ROOTS = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_GRPC_ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"


def import_grpc() -> Any:
    """The module ``grpc``, which comes with PySpark's Connect client."""
    try:
        import grpc
    except ImportError as error:
        raise ClientError(
            f"grpcio cannot be imported ({error}).", next_step="pip install 'pyspark[connect]', or pyspark-client"
        ) from None
    return grpc


@dataclass(frozen=True)
class Security:
    """How a connection is protected."""

    tls: bool
    #: PEM file of a private authority.
    ca: Path | None = None
    #: Plaintext beyond loopback is allowed.
    insecure: bool = False

    def roots(self) -> bytes | None:
        """The authorities: the named file, else gRPC's variable, else the system's list, else gRPC's own."""
        if self.ca is not None:
            return _read_authority(self.ca)
        if os.environ.get(_GRPC_ROOTS):
            return None
        named = ssl.get_default_verify_paths().cafile
        for file in [named, *_SYSTEM_ROOTS]:
            if file and os.path.isfile(file):
                return Path(file).read_bytes()
        return None


def _read_authority(file: Path) -> bytes:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The certificate authority {file} cannot be read: {error.strerror}.",
            next_step="set ca= (BERTH_CA) to the PEM file of the authority",
        ) from None
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise ConfigurationError(
            f"{file} contains no certificate.", next_step="set ca= (BERTH_CA) to the PEM file of the authority"
        )
    return text


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its spelling."""
    bare = host.strip("[]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def host_of(target: str) -> str:
    """The host of ``host:port``."""
    return target.rsplit(":", 1)[0]


def open_channel(target: str, security: Security) -> "grpc.Channel":
    """A channel to an address of the settings, whose calls carry their credential as metadata."""
    grpc = import_grpc()
    if security.tls:
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(root_certificates=security.roots()))
    return grpc.insecure_channel(target)


def open_spark_channel(
    target: str, security: Security, secret: Callable[[], Secret], options: Options
) -> "grpc.Channel":
    """A channel to ``host:port`` that asks ``secret`` for the credential of each call.

    The credential is a call credential: gRPC asks for it at each call, reattaches and uploads included. On
    loopback in plaintext gRPC's local credentials allow that (measured with grpcio 1.62.3 and 1.85.1). Plaintext
    beyond loopback has no call credentials, so there an interceptor does the same.
    """
    grpc = import_grpc()
    if security.tls:
        transport = grpc.ssl_channel_credentials(root_certificates=security.roots())
    elif is_loopback(host_of(target)):
        transport = grpc.local_channel_credentials()
    else:
        check_plaintext(target, host_of(target), security.insecure)
        return grpc.intercept_channel(grpc.insecure_channel(target, options=options), _interceptor(secret))
    call = grpc.metadata_call_credentials(_plugin(secret), name="berth")
    return grpc.secure_channel(target, grpc.composite_channel_credentials(transport, call), options=options)


def check_plaintext(address: str, host: str, insecure: bool) -> None:
    """Rejects a plaintext address beyond loopback, unless that is allowed."""
    if not insecure and not is_loopback(host):
        raise ConfigurationError(
            f"{address} is plaintext, and your key or token could be read on the network.",
            next_step="use TLS (https://); only in a network that you trust: insecure=True (BERTH_INSECURE)",
        )


def _plugin(secret: Callable[[], Secret]) -> Any:
    base: Any = import_grpc().AuthMetadataPlugin

    class CallCredential(base):  # type: ignore[misc]
        def __call__(self, context: Any, callback: Any) -> None:
            # gRPC calls this in a thread of its own, so it may wait. An error becomes UNAVAILABLE, which
            # PySpark retries.
            try:
                metadata = (bearer(secret()),)
            except Exception as error:  # noqa: BLE001 - gRPC logs anything else with a traceback
                callback(None, error)
            else:
                callback(metadata, None)

    return CallCredential()


def _interceptor(secret: Callable[[], Secret]) -> Any:
    grpc = import_grpc()
    kinds = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
    bases: Any = tuple(getattr(grpc, f"{kind}ClientInterceptor") for kind in kinds)

    class AddCredential(*bases):  # type: ignore[misc]
        def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
            try:
                added = _with_credential(details, secret())
            except Exception as error:  # noqa: BLE001 - as a call credential: PySpark repeats errors of gRPC only
                raise _unavailable(error) from None
            return continuation(added, request)

        intercept_unary_unary = _intercept
        intercept_unary_stream = _intercept
        intercept_stream_unary = _intercept
        intercept_stream_stream = _intercept

    return AddCredential()


def _unavailable(cause: Exception) -> Exception:
    """The error of a call whose credential is missing, as gRPC makes it for call credentials."""
    grpc = import_grpc()
    base: Any = grpc.RpcError

    class Unavailable(base):  # type: ignore[misc]
        def code(self) -> Any:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return str(cause)

        def initial_metadata(self) -> tuple[Any, ...]:
            return ()

        def trailing_metadata(self) -> tuple[Any, ...]:
            return ()

    return Unavailable(str(cause))


class _Details:
    """``grpc.ClientCallDetails`` with one more header."""

    def __init__(self, of: Any, metadata: Any) -> None:
        self.method, self.timeout, self.credentials = of.method, of.timeout, of.credentials
        self.wait_for_ready = getattr(of, "wait_for_ready", None)
        self.compression = getattr(of, "compression", None)
        self.metadata = metadata


def _with_credential(details: Any, secret: Secret) -> _Details:
    return _Details(details, [*(details.metadata or ()), bearer(secret)])
