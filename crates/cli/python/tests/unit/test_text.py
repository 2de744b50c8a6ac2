"""SQL parameters, times, advice on versions, progress."""

import io
import math
import sys
from datetime import timedelta

import pytest

import berth
from berth import _progress
from berth._sql import parameters
from berth._time import parse_time
from berth._versions import advice, check_python


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SELECT :a, :b + :a", ["a", "b"]),
        ("SELECT ':no', \":no\", `:no`, 'it''s :no' -- :no\n, :yes /* :no */", ["yes"]),
        ("SELECT 'a\\':no', :yes", ["yes"]),
        ("SELECT x::date, 1::int, :d::date", ["d"]),
        ("SELECT data:field, data['k']:x, f(1):y, `q`:z FROM t WHERE k IN (:k)", ["k"]),
        ("SELECT * FROM t WHERE a=:a AND b>:b1_x", ["a", "b1_x"]),
        ("SELECT 1", []),
        ("SELECT ':unfinished", []),
        ("SELECT 12:30, :1", []),
    ],
)
def test_parameters_are_found_outside_of_text(text, names):
    assert parameters(text) == names


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30m", 1800),
        ("1h 30m", 5400),
        ("1h30min", 5400),
        ("2d", 172800),
        ("1.5s", 1.5),
        (90, 90),
        (timedelta(hours=1), 3600),
    ],
)
def test_times_are_read(value, seconds):
    assert parse_time("idle", value).total_seconds() == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("", "soon", "30", "5 minutes", "1h x", "-5m", "٣m", 0, -1, True, timedelta(0), None),
        *(math.nan, math.inf, -math.inf, 1e300, 10**400, "9" * 400 + "h", "4000d", timedelta.max, b"30m"),
    ],
)
def test_what_is_no_time_names_the_argument(value):
    with pytest.raises(berth.ConfigurationError, match="idle is .*Next: give idle="):
        parse_time("idle", value)


@pytest.mark.parametrize(
    ("client", "engine_version", "supported", "words"),
    [
        ("4.1.3", "4.1.3", ["pyspark-client 4.1"], []),
        ("4.0.4", "4.1.3", [], []),
        ("4.3.0", "4.1.3", [], ["PySpark 4.3.0 is newer than sail here (Spark 4.1.3)", "pyspark-client==4.1.*"]),
        ("4.10.0", "4.9.1", [], ["4.10.0 is newer"]),
        ("3.5.9", "4.1.3", ["pyspark-client 4.1"], ["PySpark 3.5.9 is not a client", "pyspark-client 4.1"]),
        ("4.1.3", "4.1.3", ["4.1", "python 3.99"], ["Python 3.99 on the engine", "UDFs fail"]),
        ("4.1.3", "", ["python 2.0", f"python {sys.version_info[0]}.{sys.version_info[1]}"], []),
        ("4.1.3", "unknown", [], []),
    ],
)
def test_advice_is_one_line_that_says_what_to_install(client, engine_version, supported, words):
    lines = advice(client, "sail", engine_version, "local", supported)
    assert len(lines) == bool(words)
    for word in words:
        assert word in lines[0] and "Next:" in lines[0] and "\n" not in lines[0]


def test_an_engine_that_cannot_be_asked_for_its_python_is_no_error():
    lines = []
    check_python(None, lines.append).join(10)
    assert lines == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_log_is_one_line_per_change(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    progress = _progress.Progress()
    for text in ("a", "a", "b"):
        progress.show(text)
    progress.note("n")
    progress.close("done")
    assert out.getvalue() == "berth: a\nberth: b\nberth: n\nberth: done\n"


def test_progress_on_a_terminal_is_one_line_that_moves(monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    progress = _progress.Progress()
    progress.show("provisioning")
    progress._thread.join(0.5)
    progress.close("done")
    shown = out.getvalue()
    assert shown.count("provisioning (0 s)") >= 2 and "\n" not in shown.split("berth: done")[0]
    assert shown.endswith("\r\033[Kberth: done\n")


def test_progress_can_be_silent(monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    progress = _progress.Progress(enabled=False)
    progress.show("a")
    progress.note("b")
    progress.close("c")
    assert out.getvalue() == ""
