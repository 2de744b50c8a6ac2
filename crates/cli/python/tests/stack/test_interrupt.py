"""Ctrl-C and Session.interrupt() end the query on the engine, in every release of PySpark."""

import threading
import time

import pytest
from conftest import ENGINE, Interrupt, command, connect, endless, one, until


def operations(session):
    return command("operation", "list", session.id)


def test_ctrl_c_ends_the_query_on_the_engine():
    with connect() as spark:
        assert one(spark) == 10
        frame = endless(spark)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt), Interrupt(4):
            frame.collect()
        assert time.monotonic() - begun < 30
        until("no operation", lambda: not operations(spark.berth), 20)
        assert time.monotonic() - begun < 60, "it ended because of the interrupt, not because it was over"
        assert one(spark) == 10


def test_a_session_is_interrupted_from_another_thread():
    with connect() as spark:
        assert one(spark) == 10
        failed = []

        def run():
            try:
                endless(spark).collect()
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        until("an operation", lambda: operations(spark.berth), 30)
        # An interrupt before its first task leaves tasks on Spark that run on.
        time.sleep(3 if ENGINE == "spark" else 1)
        assert spark.berth.interrupt()
        thread.join(30)
        assert not thread.is_alive() and len(failed) == 1, failed
        assert one(spark) == 10
