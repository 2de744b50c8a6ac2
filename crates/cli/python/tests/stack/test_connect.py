"""connect(): a session, its progress, its end."""

import os
import pickle
import threading
import types

import pytest
from conftest import ENGINE, LINE, LOCAL_DATA, STACK, START, connect, command, live_named, on_sail, one, python, status_of, until

import berth
from berth import _versions


def test_a_session_from_nothing_to_its_end(capfd):
    with connect(labels={"team": "data"}, idle="10m") as spark:
        assert one(spark) == 10
        session = spark.berth
        seen = command("session", "describe", session.id)
        assert (seen["status"], seen["cluster"], seen["labels"]) == ("active", ENGINE, {"team": "data"})
        assert seen["policy"]["idle_timeout"] == "600s"
        assert (session.status, session.cluster, session.engine) == ("active", ENGINE, ENGINE)
        assert session.engine_version == spark.version and session.status_message == ""
        assert type(spark).__name__ == "SparkSession" and isinstance(spark, _spark_class())
        assert berth.session_of(spark) is session
    assert status_of(session.id) == "closed"
    session.close()
    shown = capfd.readouterr().err
    assert f"berth: creating a session on {ENGINE}" in shown
    assert f"berth: session {session.id} is provisioning" in shown
    assert f"berth: session {session.id} on {ENGINE} (" in shown


def _spark_class():
    from pyspark.sql.connect.session import SparkSession

    return SparkSession


def test_the_functions_of_pyspark_serve_it():
    """pyspark.sql.functions decides by the environment whether it is for Connect."""
    from pyspark.sql import functions as F
    from pyspark.sql.connect.session import SparkSession

    with connect(progress=False) as spark:
        assert SparkSession.getActiveSession() is spark
        frame = spark.range(5).select(F.sum(F.col("id")).alias("total"))
        assert frame.collect()[0]["total"] == 10
        if LOCAL_DATA:
            assert spark.createDataFrame([(1, "a")], ["n", "t"]).toPandas()["t"].tolist() == ["a"]


def test_a_name_is_reused_in_this_program_and_in_others(name):
    spark = connect(name=name)
    spark.range(3).createOrReplaceTempView("kept")
    again = connect(name=name)
    assert again is spark and again.table("kept").count() == 3
    program = (
        "import sys, berth\n"
        "spark = berth.connect(name=sys.argv[1])\n"
        "print(spark.berth.id, spark.range(4).count())\n"
    )
    assert python(program, name).split() == [spark.berth.id, "4"]
    # The other program ended; a named session stays.
    assert status_of(spark.berth.id) == "active" and one(spark) == 10
    # Stopped here: a new SparkSession on the same session.
    spark.stop()
    third = connect(name=name)
    assert third is not spark and third.berth.id == spark.berth.id and one(third) == 10
    assert live_named(name) == [spark.berth.id]
    third.berth.close()


def test_a_name_whose_session_ended_gets_a_new_session(name):
    first = connect(name=name).berth
    command("session", "close", first.id)
    second = connect(name=name).berth
    assert second.id != first.id and one(second.spark) == 10
    second.close()


def test_a_name_with_other_properties_is_an_error_that_says_what_to_do(name):
    session = connect(name=name).berth
    with pytest.raises(berth.SessionMismatch) as caught:
        berth.connect(cluster="other", name=name)
    text = str(caught.value)
    assert f"cluster '{ENGINE}'" in text and f"berth session close {session.id}" in text
    assert berth.connect(name=name).berth is session, "without cluster= any of this name fits"
    session.close()


@on_sail
def test_with_closes_only_what_its_connect_created(name):
    made = command("session", "create", "--cluster", ENGINE, "--name", name)["id"]
    with connect(name=name) as spark:
        assert spark.berth.id == made and one(spark) == 10
    assert status_of(made) == "active" and spark.is_stopped
    with berth.session(made, timeout=START) as session:
        assert one(session.spark) == 10
    assert status_of(made) == "active"
    outer = connect(name=name)
    with connect(name=name) as inner:
        assert inner is outer
    assert one(outer) == 10, "the outer connect() still uses it"
    outer.berth.close()
    assert status_of(made) == "closed"


@on_sail
def test_nested_with_statements_close_a_session_once():
    with connect() as outer:
        with berth.connect(outer.berth.id) as inner:
            assert inner is outer
        assert one(outer) == 10
    assert status_of(outer.berth.id) == "closed"


@on_sail
def test_a_failed_second_connect_leaves_an_unnamed_session_open():
    """Only the call that created it closes it."""
    session = connect().berth
    with pytest.raises(berth.BerthError):
        berth.connect(session.id, token_ttl="1s")
    session.spark.stop()
    with pytest.raises(berth.Unreachable):
        berth.connect(session.id, issuer="http://127.0.0.1:9")
    assert status_of(session.id) == "active"
    assert one(berth.connect(session.id)) == 10
    session.close()


@on_sail
def test_a_failed_connect_closes_what_it_created():
    before = {one_["id"] for one_ in command("session", "list", "--all")}
    with pytest.raises(berth.Unreachable):
        connect(issuer="http://127.0.0.1:9")
    made = [one_ for one_ in command("session", "list", "--all") if one_["id"] not in before]
    assert [one_["status"] for one_ in made] == ["closed"]


@on_sail
def test_two_programs_that_create_a_name_at_once_share_one_session(name):
    made = []
    program = "import sys, berth; print(berth.connect(cluster='sail', name=sys.argv[1], progress=False).berth.id)"
    threads = [threading.Thread(target=lambda: made.append(python(program, name).strip())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert len(made) == 2 and len(set(made)) == 1
    assert live_named(name) == made[:1]
    command("session", "close", made[0])


@on_sail
def test_threads_of_one_program_share_a_named_session(name):
    got, failed = [], []

    def run():
        try:
            spark = connect(name=name, progress=False)
            assert one(spark) == 10
            got.append(spark.berth.id)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert not failed and len(set(got)) == 1 and len(got) == 4
    assert live_named(name) == got[:1]
    berth.session(session=got[0]).close()


def test_a_session_by_its_id():
    made = command("session", "create", "--cluster", ENGINE)["id"]
    session = berth.session(made, timeout=120)
    assert session.id == made and one(session.spark) == 10
    session.close()
    assert status_of(made) == "closed"


@on_sail
def test_an_unnamed_session_is_closed_when_python_exits(name):
    program = "import sys, berth; s = berth.connect(cluster='sail'); s.range(1).count(); print(s.berth.id)"
    made = python(program).strip()
    until("closed", lambda: status_of(made) == "closed", 10)


@on_sail
def test_a_program_that_fails_closes_its_unnamed_session():
    program = "import berth; s = berth.connect(cluster='sail'); open('id', 'w').write(s.berth.id); raise SystemExit(3)"
    with pytest.raises(AssertionError):
        python(program)
    with open("id") as file:
        made = file.read()
    os.unlink("id")
    until("closed", lambda: status_of(made) == "closed", 10)


@on_sail
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_leaves_the_session_to_its_parent():
    """In a program of its own: gRPC and forks of a test runner do not mix."""
    program = """
import atexit, os, sys, berth
from berth import _session
spark = berth.connect(cluster="sail", progress=False)
spark.range(1).count()
child = os.fork()
if child == 0:
    # What the child would close at its exit.
    ok = not _session._sessions and not _session._owned
    _session._at_exit()
    spark.berth.close()
    with spark:
        pass
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), spark.berth.status, spark.range(3).count())
"""
    assert python(program).split() == ["0", "active", "3"]


def test_the_only_cluster_needs_no_name_and_of_several_all_are_named():
    with pytest.raises(berth.ConfigurationError) as caught:
        berth.connect()
    assert "there are sail, spark" in str(caught.value) and "cluster=" in caught.value.next_step


@on_sail
def test_the_catalog_is_the_default():
    with connect(catalog="dev") as spark:
        assert spark.catalog.currentCatalog() == "dev"


@on_sail
def test_another_python_on_the_engine_is_shown_in_one_line(monkeypatch):
    with connect() as spark:
        assert _versions.engine_python(spark).split(".")[:2] == [str(part) for part in os.sys.version_info[:2]]
        monkeypatch.setattr(_versions, "sys", types.SimpleNamespace(version_info=(3, 99, 0)))
        lines = []
        _versions.check_python(spark, lines.append).join(30)
    assert len(lines) == 1 and "Python UDFs fail" in lines[0] and "\n" not in lines[0]


def test_a_client_that_is_newer_than_the_engine_is_shown_in_one_line(capfd):
    with connect() as spark:
        engine = tuple(int(part) for part in spark.version.split(".")[:2])
    shown = capfd.readouterr().err
    assert ("is newer than" in shown) is (LINE > engine), shown


@on_sail
def test_work_without_a_call_can_be_kept_alive():
    from datetime import timedelta

    with connect() as spark:
        spark.berth.keep_alive(timedelta(hours=1))
        first = command("session", "describe", spark.berth.id)["keep_alive_until"]
        spark.berth.keep_alive("2h")
        assert command("session", "describe", spark.berth.id)["keep_alive_until"] > first > ""
        with pytest.raises(berth.ConfigurationError, match="duration is not positive.*Next"):
            spark.berth.keep_alive(timedelta(0))


@on_sail
def test_a_session_is_not_pickled():
    with connect() as spark:
        with pytest.raises(TypeError, match="a session of berth is not pickled: call berth.connect"):
            pickle.dumps({"session": spark.berth})


def test_tls_is_what_the_stack_says():
    """The matrix has both; this guards against a run that tests one of them twice."""
    with connect() as spark:
        assert spark.berth._tokens.issued.tls is STACK["tls"]
