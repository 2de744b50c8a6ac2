"""Calls of the APIs on a real gRPC server: which errors are repeated, and for how long."""

import concurrent.futures
import time

import grpc
import pytest

import berth
from berth import _messages as m
from berth._control import ControlPlane
from berth._credential import Credential
from berth._settings import Context, Settings
from berth._wire import encode


class Answers(grpc.GenericRpcHandler):
    """Errors first, then sessions."""

    def __init__(self):
        self.errors = []
        self.count = 0

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request, context):
        self.count += 1
        if self.errors:
            reason, code, seconds = self.errors.pop(0)
            context.set_trailing_metadata(trailers(reason, seconds))
            context.abort(code, "Text of the server.")
        return encode(m.DescribeSessionResponse(m.Session(id="s-1")))


def trailers(reason, seconds):
    """As Berth sends them: details only with a RetryInfo here."""
    if seconds is None:
        return (("berth-reason", reason),)
    retry = encode(m.RetryInfo(m.Duration(int(seconds), round(seconds % 1 * 1e9))))
    details = m.RpcStatus(details=[m.AnyMessage("type.googleapis.com/google.rpc.RetryInfo", retry)])
    return (("berth-reason", reason), ("grpc-status-details-bin", encode(details)))


@pytest.fixture
def answers():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    answers = Answers()
    server.add_generic_rpc_handlers((answers,))
    answers.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield answers
    server.stop(None)


def describe(answers, **options):
    address = f"http://127.0.0.1:{answers.port}"
    settings = Settings(address, address, None, False, Context())
    with ControlPlane(settings, Credential("a test", lambda: "key")).manager() as api:
        return api.call("SessionService", m.DescribeSessionRequest("s-1"), m.DescribeSessionResponse, **options)


@pytest.mark.parametrize(
    ("reason", "code", "seconds"),
    [
        ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED, 0.4),
        ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED, None),
        ("CONTROL_PLANE_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE, 0.4),
        ("CONTROL_PLANE_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE, None),
    ],
)
def test_a_temporary_error_is_repeated_after_its_pause(answers, reason, code, seconds):
    answers.errors = [(reason, code, seconds)] * 2
    begun = time.monotonic()
    assert describe(answers).session.id == "s-1"
    assert answers.count == 3 and time.monotonic() - begun >= 2 * (seconds or 0.2)


def test_the_number_of_attempts_is_bounded(answers):
    answers.errors = [("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED, 0.01)] * 20
    with pytest.raises(berth.QuotaExceeded) as caught:
        describe(answers)
    assert answers.count == 4 and caught.value.retry_after == 0.01


@pytest.mark.parametrize(
    ("reason", "code", "seconds"),
    [
        ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED, 60),
        ("QUOTA_EXCEEDED", grpc.StatusCode.RESOURCE_EXHAUSTED, None),
        ("SESSION_CLOSED", grpc.StatusCode.FAILED_PRECONDITION, None),
    ],
)
def test_a_long_pause_and_a_final_error_are_raised_immediately(answers, reason, code, seconds):
    answers.errors = [(reason, code, seconds)]
    with pytest.raises(berth.BerthError) as caught:
        describe(answers)
    assert answers.count == 1 and (caught.value.reason, caught.value.retry_after) == (reason, seconds)


def test_an_impatient_call_is_made_once(answers):
    answers.errors = [("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED, 0.1)]
    with pytest.raises(berth.QuotaExceeded):
        describe(answers, patient=False)
    assert answers.count == 1
