"""The token is renewed across clones, new sessions, uploads, and queries longer than its life.

Tokens live for 60 s, the shortest life there is. The proxy of these tests allows no difference of clocks and no grace
after expiry, so that an old token fails at the next call of any kind.
"""

import threading
import time

import pytest
from conftest import ENGINE, LINE, LOCAL_DATA, STACK, command, connect, one, sleeps, status_of, until

#: The longest run sees Spark end its stream after two minutes, so that PySpark reattaches with a new token.
LONG = bool(STACK and STACK.get("long")) and ENGINE == "spark"
QUERY = 130 if LONG else 70
LIFE = 60


def tokens_of(session):
    """The ids of those that are not yet forgotten."""
    return {token["token_id"] for token in command("token", "list", session.id)}


class Query(threading.Thread):
    """A query that takes its time, in the background."""

    def __init__(self, spark, seconds):
        super().__init__()
        self.spark, self.seconds, self.value, self.error = spark, seconds, None, None

    def run(self):
        try:
            self.value = self.spark.range(1).select(sleeps(self.seconds)("id").alias("v")).collect()[0]["v"]
        except BaseException as error:
            self.error = error


def others(spark):
    """More SparkSessions on the same session, as far as this PySpark and engine have them."""
    made = {}
    if LINE >= (4, 1) and ENGINE == "spark":
        made["clone"] = spark.cloneSession()
    if LINE >= (4, 3):
        made["new"] = spark.newSession()
    return made


def upload(spark, tmp_path):
    """What PySpark sends by AddArtifacts where the engine has it, and a large local relation."""
    import pandas

    rows = 200_000
    frame = pandas.DataFrame({"n": range(rows), "t": ["text of some length"] * rows})
    if ENGINE == "spark":
        file = tmp_path / f"module_{time.monotonic_ns()}.py"
        file.write_text("ANSWER = 42\n" + "#" * 200_000)
        if LINE >= (3, 5):
            spark.addArtifact(str(file), pyfile=True)
        if LINE >= (4, 0):
            spark.conf.set("spark.sql.session.localRelationCacheThreshold", 1024)
    if LOCAL_DATA:
        assert spark.createDataFrame(frame).count() == rows


def test_one_session_for_longer_than_its_tokens(tmp_path, name):
    # Unused meanwhile: what becomes of it is checked at the end, so that the test waits once.
    unused = connect(name=f"{name}-unused", idle="60s", token_ttl=LIFE) if ENGINE == "sail" else None
    assert unused is None or one(unused) == 10
    spark = connect(name=name, token_ttl=LIFE)
    begun = time.monotonic()
    session = spark.berth
    # Spark clones only a session that had a query.
    assert one(spark) == 10
    made = {"first": spark, **others(spark)}
    for which, other in made.items():
        assert one(other) == 10, which
    upload(spark, tmp_path)
    used = tokens_of(session)
    assert len(used) == 1
    # Sail runs UDFs in the threads of its queries, of which a small machine has two.
    queries = [Query(other, QUERY) for other in ([spark] if ENGINE == "sail" else made.values())]
    for query in queries:
        query.start()
    while any(query.is_alive() for query in queries):
        # Also calls while they run, so that renewal is asked for by many.
        assert one(spark) == 10
        used |= tokens_of(session)
        time.sleep(5)
    for query in queries:
        query.join()
        assert query.error is None and query.value == 41, query.error
    assert time.monotonic() - begun > LIFE + 5
    # Every token of the beginning has expired; each kind of call works still.
    for which, other in made.items():
        assert one(other) == 10, which
        upload(other, tmp_path)
    for which, other in others(spark).items():
        assert one(other) == 10, f"{which} of later"
        # stop() of a clone fails in 4.1 and 4.2 (release_session_on_close).
        other.client.close()
    used |= tokens_of(session)
    spent = time.monotonic() - begun
    assert 2 <= len(used) <= spent / 40 + 2, f"{len(used)} tokens in {spent:.0f} s"
    session.close()
    if unused is not None:
        wakes(unused, f"{name}-unused")


def wakes(spark, name):
    """An idle session is woken by connect(), and its expired token renewed."""
    session = spark.berth
    until("idle without compute", lambda: command("session", "describe", session.id)["phase"] == "released", 60)
    again = connect(name=name)
    assert again is spark and one(again) == 10 and status_of(session.id) == "active"
    session.close()


@pytest.mark.skipif(ENGINE != "sail", reason="the same code for both engines")
def test_an_outage_of_token_issuer_is_survived(environment):
    """The token serves meanwhile; the next attempt succeeds."""
    spark = connect(token_ttl=LIFE)
    session = spark.berth
    issuer = session._control.settings.issuer
    session._tokens._renew_after = 0.0
    object.__setattr__(session._control.settings, "issuer", "http://127.0.0.1:9")
    assert one(spark) == 10
    until("the failure", lambda: session._tokens._failure, 20)
    assert one(spark) == 10
    object.__setattr__(session._control.settings, "issuer", issuer)
    before = session._tokens.issued
    until("the renewal", lambda: one(spark) and session._tokens.issued is not before, 20)
    session.close()
