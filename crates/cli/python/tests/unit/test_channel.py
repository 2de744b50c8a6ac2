"""Channels to a real gRPC server: each call carries the credential of its own moment."""

import concurrent.futures
import copy

import grpc
import pytest

import berth
from berth import _pyspark
from berth._channel import Security, open_spark_channel
from berth._secret import Secret

PLAIN = Security(tls=False)


class Echo(grpc.GenericRpcHandler):
    """Answers with the authorization that it received, for the four kinds of calls."""

    def service(self, details):
        got = dict(details.invocation_metadata).get("authorization", "none").encode()
        make = {
            "UnaryUnary": (grpc.unary_unary_rpc_method_handler, lambda request, _: got),
            "UnaryStream": (grpc.unary_stream_rpc_method_handler, lambda request, _: iter([got])),
            "StreamUnary": (grpc.stream_unary_rpc_method_handler, lambda requests, _: (list(requests), got)[1]),
            "StreamStream": (grpc.stream_stream_rpc_method_handler, lambda requests, _: (got for _ in requests)),
        }
        handler, behaviour = make[details.method.rpartition("/")[2]]
        return handler(behaviour)


@pytest.fixture(scope="module")
def port():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


class Source:
    """A new secret at each call."""

    def __init__(self):
        self.count = 0
        self.error = None

    def __call__(self):
        if self.error is not None:
            raise self.error
        self.count += 1
        return Secret(f"secret-{self.count}")


def received(channel):
    """What the server received with one call of each kind."""
    return [
        channel.unary_unary("/s/UnaryUnary")(b"", timeout=10),
        *channel.unary_stream("/s/UnaryStream")(b"", timeout=10),
        channel.stream_unary("/s/StreamUnary")(iter([b""]), timeout=10),
        *channel.stream_stream("/s/StreamStream")(iter([b""]), timeout=10),
    ]


# The last address is this machine, but not by its spelling.
@pytest.mark.parametrize(
    ("host", "security"),
    [("localhost", PLAIN), ("127.0.0.1", PLAIN), ("ipv4:127.0.0.1", Security(tls=False, insecure=True))],
)
def test_each_call_asks_for_the_secret(port, host, security):
    channel = open_spark_channel(f"{host}:{port}", security, Source(), [])
    assert received(channel) == [f"Bearer secret-{number}".encode() for number in (1, 2, 3, 4)]
    assert received(channel) == [f"Bearer secret-{number}".encode() for number in (5, 6, 7, 8)]
    channel.close()


def can_retry(error):
    """PySpark's own decision."""
    if _pyspark.minor(_pyspark.version()) < (4, 0):
        from pyspark.sql.connect.client import SparkConnectClient

        return SparkConnectClient.retry_exception(error)
    from pyspark.sql.connect.client.retries import DefaultPolicy

    return DefaultPolicy().can_retry(error)


def retrying():
    """PySpark's attempts, with short pauses."""
    if _pyspark.minor(_pyspark.version()) < (4, 0):
        from pyspark.sql.connect.client.core import Retrying

        return Retrying(5, 10, 10, 1.0, 0, 0, can_retry)
    from pyspark.sql.connect.client.retries import DefaultPolicy, Retrying

    return Retrying(DefaultPolicy(initial_backoff=10))


@pytest.mark.parametrize(
    ("host", "security"), [("localhost", PLAIN), ("ipv4:127.0.0.1", Security(tls=False, insecure=True))]
)
def test_an_error_of_the_source_is_one_that_pyspark_repeats(port, host, security):
    """With its own policy, in each of the four kinds of calls."""
    source = Source()
    channel = open_spark_channel(f"{host}:{port}", security, source, [])
    source.error = berth.Unreachable("token-issuer is away.", next_step="try again in a few seconds")
    calls = [
        lambda: channel.unary_unary("/s/UnaryUnary")(b"", timeout=10),
        lambda: list(channel.unary_stream("/s/UnaryStream")(b"", timeout=10)),
        lambda: channel.stream_unary("/s/StreamUnary")(iter([b""]), timeout=10),
        lambda: list(channel.stream_stream("/s/StreamStream")(iter([b""]), timeout=10)),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "token-issuer is away. Next: try again" in caught.value.details()
        assert can_retry(caught.value)
    source.error = None
    assert received(channel)[0] == b"Bearer secret-1"


def test_pyspark_repeats_a_call_until_there_is_a_token_again(port):
    """Its Retrying reads more of the error than the code."""
    source = Source()
    source.error = berth.Unreachable("token-issuer is away.", next_step="try again in a few seconds")
    channel = open_spark_channel(f"ipv4:127.0.0.1:{port}", Security(tls=False, insecure=True), source, [])
    attempts = 0
    for attempt in retrying():
        with attempt:
            attempts += 1
            if attempts == 3:
                source.error = None
            answer = channel.unary_unary("/s/UnaryUnary")(b"", timeout=10)
    assert attempts == 3 and answer == b"Bearer secret-1"


def test_plaintext_beyond_loopback_needs_to_be_allowed():
    with pytest.raises(berth.ConfigurationError, match="berth.example.org:8085 is plaintext.*Next: use TLS"):
        open_spark_channel("berth.example.org:8085", PLAIN, Source(), [])


class Tokens:
    """A source of tokens with a lock, which cannot be copied."""

    def __init__(self):
        import threading

        self.lock = threading.Lock()

    def current(self):
        return Secret("secret")

    def __deepcopy__(self, memo):
        return self


def builder(tls=False):
    make = _pyspark._builder_class()
    return make("sc://localhost:8085/;x-session-id=s-1", Security(tls=tls), Tokens())


def test_the_builder_has_no_token_in_any_option(monkeypatch):
    monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", "of-another-account")
    made = builder()
    assert dict(made.metadata()) == {"x-session-id": "s-1"}
    assert made.secure is False and builder(tls=True).secure is True
    assert made.endpoint == "localhost:8085" and made.host == "localhost"
    shown = repr(made) + repr(made._channel_options) + repr(vars(made))
    assert "secret" not in shown and "of-another-account" not in shown
    assert ("grpc.keepalive_time_ms", 60_000) in made._channel_options


def test_the_builder_is_copied_with_the_same_tokens(port):
    """As clone() and newSession() do."""
    made = builder()
    again = copy.deepcopy(made)
    assert again is not made and again._berth_tokens is made._berth_tokens
    assert dict(again.metadata()) == {"x-session-id": "s-1"}


def test_the_builder_gives_a_channel_that_asks_at_each_call(port):
    made = _pyspark._builder_class()(f"sc://localhost:{port}/;x-session-id=s-1", PLAIN, Tokens())
    channel = made.toChannel()
    assert received(channel) == [b"Bearer secret"] * 4
    channel.close()


@pytest.mark.skipif(_pyspark.minor(_pyspark.version()) < (4, 0), reason="3.5 has no interceptors")
def test_interceptors_of_the_builder_are_kept(port):
    seen = []

    class Spy(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, go_on, details, request):
            seen.append(details.method)
            return go_on(details, request)

    made = _pyspark._builder_class()(f"sc://localhost:{port}/;x-session-id=s-1", PLAIN, Tokens())
    made.add_interceptor(Spy())
    assert made.toChannel().unary_unary("/s/UnaryUnary")(b"", timeout=10) == b"Bearer secret"
    assert seen == ["/s/UnaryUnary"]


def test_a_classic_session_in_the_process_is_an_error(monkeypatch):
    try:
        from pyspark.core.context import SparkContext
    except ImportError:
        SparkContext = pytest.importorskip("pyspark.context", exc_type=ImportError).SparkContext
    monkeypatch.setattr(SparkContext, "_active_spark_context", object())
    with pytest.raises(berth.ClientError, match="classic Spark session.*Next: stop it"):
        _pyspark.check()
