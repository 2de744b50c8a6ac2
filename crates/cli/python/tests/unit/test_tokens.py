"""When tokens are renewed. Time is that of the test."""

import copy
import os
import pickle
import threading
import time

import pytest

import berth
from berth import _tokens
from berth._secret import Secret
from berth._tokens import Issued, SessionTokens

LIFE = 60.0


class Clock:
    """time.monotonic() and time.time() of the module."""

    def __init__(self):
        self.now = 1000.0
        #: How far the wall clock is ahead: a suspended machine adds to it only.
        self.ahead = 1.7e9

    def monotonic(self):
        return self.now

    def time(self):
        return self.now + self.ahead


class Issuer:
    """What token-issuer answers: a new token, or an error."""

    def __init__(self):
        self.count = 0
        self.error = None

    def __call__(self):
        if self.error is not None:
            raise self.error
        self.count += 1
        return Issued(Secret(f"token-{self.count}"), LIFE, "localhost:1", False)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_tokens, "time", clock)
    return clock


@pytest.fixture
def issuer():
    return Issuer()


def settle(tokens):
    """Until the renewal in the background has ended."""
    thread = tokens._renewing
    if thread is not None:
        thread.join(10)
        assert not thread.is_alive()


def test_one_token_serves_two_thirds_of_its_life(clock, issuer):
    tokens = SessionTokens("s-1", issuer)
    for _ in range(50):
        assert tokens.current() == "token-1"
    clock.now += 39.9
    assert tokens.current() == "token-1" and issuer.count == 1
    clock.now += 0.2
    assert tokens.current() == "token-1", "the old one still serves while it is renewed"
    settle(tokens)
    assert tokens.current() == "token-2" and issuer.count == 2


def test_after_a_long_pause_the_call_waits_for_the_new_one(clock, issuer):
    tokens = SessionTokens("s-1", issuer)
    clock.now += 3600
    assert tokens.current() == "token-2"


def test_a_suspended_machine_counts(clock, issuer):
    """The monotonic clock stands still meanwhile."""
    tokens = SessionTokens("s-1", issuer)
    clock.ahead += 45
    assert tokens.current() == "token-1", "it still serves"
    settle(tokens)
    assert tokens.current() == "token-2"
    clock.ahead += 3600
    assert tokens.current() == "token-3"


def test_a_wall_clock_that_is_set_back_has_no_effect(clock, issuer):
    tokens = SessionTokens("s-1", issuer)
    clock.ahead -= 86400
    assert tokens.current() == "token-1"
    clock.now += 3600
    assert tokens.current() == "token-2"


def test_a_renewal_on_request_uses_the_new_source(clock, issuer):
    """As connect() of an open session does, whose token may be revoked and whose credential may be another."""
    tokens = SessionTokens("s-1", issuer)
    other = Issuer()
    other.count = 10
    tokens.renew(other)
    assert tokens.current() == "token-11" and issuer.count == 1
    clock.now += 3600
    assert tokens.current() == "token-12"
    other.error = berth.Unreachable("away.", next_step="try again in a few seconds")
    tokens.renew(other)
    assert tokens.current() == "token-12", "it is valid, so an outage has no effect"
    clock.now += 3600
    with pytest.raises(berth.Unreachable):
        tokens.renew(other)
    wrong = Issuer()
    wrong.error = berth.PermissionDenied("No.", next_step="ask the administrator")
    with pytest.raises(berth.PermissionDenied):
        tokens.renew(wrong)
    other.error = None
    assert tokens.current() == "token-13", "the working source stays"


def test_many_threads_renew_once(clock, issuer):
    tokens = SessionTokens("s-1", issuer)
    clock.now += 3600
    got = []
    threads = [threading.Thread(target=lambda: got.append(tokens.current())) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert got == ["token-2"] * 32 and issuer.count == 2


def test_an_outage_is_temporary_and_ends_by_itself(clock, issuer, capsys):
    tokens = SessionTokens("s-1", issuer)
    issuer.error = berth.Unreachable("away.", next_step="try again in a few seconds")
    clock.now += 50
    assert tokens.current() == "token-1"
    settle(tokens)
    assert tokens.current() == "token-1", "it is valid for ten seconds more"
    settle(tokens)
    clock.now += 50
    with pytest.raises(berth.Unreachable):
        tokens.current()
    issuer.error = None
    clock.now += 2.1
    assert tokens.current() == "token-2"
    assert capsys.readouterr().err == ""


def frames(error):
    trace, count = error.__traceback__, 0
    while trace is not None:
        trace, count = trace.tb_next, count + 1
    return count


def test_a_failure_that_is_raised_often_does_not_grow(clock, issuer):
    tokens = SessionTokens("s-1", issuer)
    issuer.error = berth.Unreachable("away.", next_step="try again in a few seconds")
    clock.now += 3600
    counts = []
    for _ in range(10):
        with pytest.raises(berth.Unreachable) as caught:
            tokens.current()
        counts.append(frames(caught.value))
    assert len(set(counts)) == 1, counts
    assert tokens._failure.__traceback__ is None


def test_a_rate_limit_is_temporary_and_its_pause_is_kept(clock, issuer, capsys):
    tokens = SessionTokens("s-1", issuer)
    issuer.error = berth.QuotaExceeded("Too many.", next_step="wait a moment", reason="RATE_LIMITED", retry_after=5.0)
    clock.now += 3600
    with pytest.raises(berth.QuotaExceeded):
        tokens.current()
    issuer.error = None
    clock.now += 4.9
    with pytest.raises(berth.QuotaExceeded):
        tokens.current()
    clock.now += 0.2
    assert tokens.current() == "token-2"
    assert capsys.readouterr().err == ""


def test_a_final_refusal_is_printed_once_and_left_to_the_proxy(clock, issuer, capsys):
    tokens = SessionTokens("s-1", issuer)
    issuer.error = berth.SessionClosed("It is closed.", next_step="create another session")
    for _ in range(5):
        clock.now += 100
        # spark-proxy answers the old token with the cause immediately; an error here would be retried for minutes.
        assert tokens.current() == "token-1"
    printed = capsys.readouterr().err
    assert printed.count("berth: the token of s-1 was not renewed: It is closed. Next: create another session") == 1


def test_an_unexpected_error_is_printed_once_without_a_traceback(clock, issuer, capsys):
    tokens = SessionTokens("s-1", issuer)
    issuer.error = RuntimeError("no more threads")
    clock.now += 45
    assert tokens.current() == "token-1"
    settle(tokens)
    clock.now += 100
    assert tokens.current() == "token-1"
    printed = capsys.readouterr().err
    assert printed.count("was not renewed: The renewal ended with RuntimeError. Next: ") == 1
    assert "Traceback" not in printed


def test_copies_are_the_same_and_nothing_is_pickled(issuer):
    tokens = SessionTokens("s-1", issuer)
    assert copy.deepcopy({"a": [tokens]})["a"][0] is tokens and copy.copy(tokens) is tokens
    assert "token-1" not in repr(tokens) and "token-1" not in repr(vars(tokens))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(tokens)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_during_a_renewal_does_not_hang(issuer):
    tokens = SessionTokens("s-1", issuer)
    tokens._lock.acquire()
    child = os.fork()
    if child == 0:
        tokens._expires_after = tokens._renew_after = 0.0
        os._exit(0 if tokens.current() == "token-2" else 1)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child waits for a lock of its parent")
