"""A plugin of pytest that writes the outcome of each test as a JSON line: pytest -p outcomes.

BERTH_OUTCOMES is the file of the lines. Tests that have a line there already are not run again, so a
run continues after a crash. BERTH_ONLY is a file with the ids of the tests to run; without it, all.
BERTH_LEFT_OUT has ids of tests that are not run, or their beginnings and a star, one a line.
BERTH_RELEASE_OF is the module whose version is the release of the suite.
"""

import gc
import importlib
import json
import os

import pytest

outcomes = os.environ["BERTH_OUTCOMES"]
results = {}


def id_of(node):
    """The id of a test without the folder of a venv."""
    return node.split("site-packages/")[-1]


def write(line):
    with open(outcomes, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def seen():
    """The tests that have a line, also if their process died in them."""
    try:
        with open(outcomes, encoding="utf-8") as file:
            return {json.loads(line).get("test") for line in file}
    except FileNotFoundError:
        return set()


def chosen():
    path = os.environ.get("BERTH_ONLY")
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return set(file.read().splitlines())


def is_left_out(test):
    patterns = os.environ.get("BERTH_LEFT_OUT", "").splitlines()
    return any(test.startswith(p[:-1]) if p.endswith("*") else test == p for p in patterns)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    done, only = seen(), chosen()

    def is_wanted(test):
        return test not in done and (only is None or test in only) and not is_left_out(test)

    kept = [item for item in items if is_wanted(id_of(item.nodeid))]
    ids = {item.nodeid for item in kept}
    left_out = [item for item in items if item.nodeid not in ids]
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)
    module = importlib.import_module(os.environ["BERTH_RELEASE_OF"])
    write({"release": module.__version__})


def pytest_runtest_logstart(nodeid):
    write({"test": id_of(nodeid), "outcome": "started"})


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    made = yield
    report = made.get_result()
    if report.failed and call.excinfo is not None:
        report.berth_error = call.excinfo.typename
        report.berth_detail = str(call.excinfo.value)[:400]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    # Results that PySpark 3.5 collects while a class stops its session can block the client for ever.
    if getattr(nextitem, "cls", None) is not item.cls:
        gc.collect()


def pytest_runtest_logreport(report):
    result = results.setdefault(report.nodeid, {"outcome": "passed"})
    if report.failed and result["outcome"] != "failed":
        error = getattr(report, "berth_error", "")
        result |= {"outcome": "failed", "error": error, "detail": getattr(report, "berth_detail", "")}
    elif report.skipped and result["outcome"] == "passed":
        result["outcome"] = "skipped"


def pytest_runtest_logfinish(nodeid):
    write({"test": id_of(nodeid)} | results.pop(nodeid, {"outcome": "skipped"}))


def pytest_sessionfinish(exitstatus):
    write({"ended": int(exitstatus)})
