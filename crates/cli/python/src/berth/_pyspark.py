"""The PySpark of this environment: its channel builder, its session, and what 3.5 lacks."""

from __future__ import annotations

import functools
import os
from typing import Any, Iterator

from ._channel import Security, open_spark_channel
from ._tokens import TokenSource
from .errors import ClientError

_INSTALL = "pip install pyspark-client, or 'pyspark[connect]', in the release of the cluster: `berth cluster describe NAME`"
_OLDEST = (3, 5)
#: As PySpark 4.3 has them: a connection that a gateway dropped without a word is noticed.
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


def version() -> str:
    """The release of PySpark."""
    try:
        import pyspark
    except ImportError:
        raise ClientError("PySpark is not installed.", next_step=_INSTALL) from None
    return str(pyspark.__version__)


def minor(text: str) -> tuple[int, int] | None:
    """``(4, 1)`` of ``4.1.3``; ``None`` if it is no version."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return None


def check() -> tuple[int, int]:
    """The minor release of PySpark, if this package can use it."""
    found = version()
    line = minor(found)
    if line is None or line < _OLDEST:
        raise ClientError(f"PySpark {found} is too old: 3.5 or later is needed.", next_step=_INSTALL)
    try:
        from pyspark.sql.connect import client
        from pyspark.sql.connect.session import SparkSession  # noqa: F401
    except ImportError as error:
        raise ClientError(f"PySpark {found} has no usable Connect client: {error}", next_step=_INSTALL) from None
    if not hasattr(client, "ChannelBuilder"):
        raise ClientError(
            f"PySpark {found} here is not the Connect client of Apache Spark, and takes no channel builder.",
            next_step="pip install pyspark-client, or use the string of `berth token issue SESSION`",
        )
    _check_no_classic_session()
    return line


def _check_no_classic_session() -> None:
    try:
        from pyspark.core.context import SparkContext
    except ImportError:
        try:
            from pyspark.context import SparkContext
        except ImportError:
            return
    if getattr(SparkContext, "_active_spark_context", None) is not None:
        raise ClientError(
            "A classic Spark session runs in this process, and PySpark cannot have both.",
            next_step="stop it (spark.stop()), or connect in another process",
        )


def new_session(session: str, endpoint: str, security: Security, tokens: TokenSource) -> Any:
    """A SparkSession of a Berth session, which becomes the active one."""
    line = check()
    from pyspark.sql.connect.session import SparkSession

    # PySpark's functions serve Connect then; the builder of pyspark.sql sets it too.
    os.environ["SPARK_CONNECT_MODE_ENABLED"] = "1"
    builder = _builder_class()(f"sc://{endpoint}/;x-session-id={session}", security, tokens)
    spark = SparkSession.builder.channelBuilder(builder).create()
    if line < (4, 0):
        _interrupt_on_ctrl_c(spark._client)
    SparkSession._active_session.session = spark
    return spark


@functools.lru_cache(maxsize=1)
def _builder_class() -> Any:
    from pyspark.sql.connect import client

    # 3.5 has one class, 4.x an abstract one and one that reads a connection string.
    base: Any = getattr(client, "DefaultChannelBuilder", None) or client.ChannelBuilder

    class BerthChannelBuilder(base):  # type: ignore[misc]
        """Reads a connection string without a token, and makes channels that ask for the token at each call.

        PySpark asks ``metadata()`` once per query and once per client for uploads, so a token there would be
        old after a while. clone() and newSession() copy this object deeply.
        """

        def __init__(self, url: str, security: Security, tokens: TokenSource) -> None:
            # Before the base class, which asks for `secure`.
            self._berth_security = security
            self._berth_tokens = tokens
            super().__init__(url)
            present = {key for key, _ in self._channel_options}
            self._channel_options += [one for one in _KEEPALIVE if one[0] not in present]

        def __repr__(self) -> str:
            return f"<channel builder of berth to {self.endpoint}>"

        @property
        def secure(self) -> bool:
            return self._berth_security.tls

        @property
        def token(self) -> None:
            # In 4.x this is SPARK_CONNECT_AUTHENTICATE_TOKEN otherwise.
            return None

        def toChannel(self) -> Any:
            options = list(self._channel_options)
            channel = open_spark_channel(self.endpoint, self._berth_security, self._berth_tokens.current, options)
            added = getattr(self, "_interceptors", [])
            if added:
                import grpc

                channel = grpc.intercept_channel(channel, *added)
            return channel

    return BerthChannelBuilder


def tokens_of(spark: Any) -> TokenSource | None:
    """The tokens of a SparkSession that this package made, or of a clone of one."""
    builder = getattr(getattr(spark, "_client", None), "_builder", None)
    return getattr(builder, "_berth_tokens", None)


def is_stopped(spark: Any) -> bool:
    """Whether ``spark.stop()`` was called."""
    return bool(spark.is_stopped)


def _interrupt_on_ctrl_c(client: Any) -> None:
    """Ctrl-C ends the query on the engine too, as PySpark 4 does; 3.5 only stops waiting for it."""
    for name in ("_execute_and_fetch_as_iterator", "_execute"):
        setattr(client, name, _interrupting(client, getattr(client, name)))


def _interrupting(client: Any, run: Any) -> Any:
    def interrupt(request: Any) -> None:
        try:
            if request.operation_id:
                client.interrupt_operation(request.operation_id)
        except Exception:  # noqa: BLE001, S110 - the person sees KeyboardInterrupt
            pass

    @functools.wraps(run)
    def wrapper(request: Any) -> Any:
        try:
            result = run(request)
        except KeyboardInterrupt:
            interrupt(request)
            raise
        return result if result is None else iterate(request, result)

    def iterate(request: Any, result: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from result
        except KeyboardInterrupt:
            interrupt(request)
            raise

    return wrapper


def attach(spark: Any, session: Any) -> None:
    """Gives a SparkSession the attribute ``berth``, and makes ``with`` the same in all releases."""
    kind: Any = type(spark)
    spark.__class__ = _closing_class(kind)
    spark.berth = session


@functools.lru_cache(maxsize=4)
def _closing_class(base: Any) -> Any:
    class SparkSession(base):  # type: ignore[misc]
        __doc__ = base.__doc__

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.berth.__exit__(*error)

        def __del__(self) -> None:
            # In 3.5 it joins the threads of all sessions, in whichever thread the garbage is collected: a
            # deadlock if that is one of them. The channel is closed by stop(), close(), or its own end.
            pass

    SparkSession.__module__, SparkSession.__qualname__ = base.__module__, base.__qualname__
    return SparkSession
