"""Each error names the next step, and none carries a secret."""

import ast
import copy
import inspect
import pathlib
import pickle
import re

import pytest

import berth
from berth import errors
from berth._secret import HIDDEN, Secret, bearer, hidden

PACKAGE = pathlib.Path(errors.__file__).parent
DOCUMENT = pathlib.Path(__file__).resolve().parents[5] / "docs" / "errors.md"
ALL = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.BerthError)]


def reasons_of_the_apis():
    section = DOCUMENT.read_text().split("\n## On the APIs\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([A-Z_]+)` \|", section, re.MULTILINE))


def test_every_reason_of_the_apis_has_a_class_and_a_next_step():
    reasons = reasons_of_the_apis()
    assert len(reasons) > 20
    assert reasons == set(errors.BY_REASON)
    for reason in reasons:
        error = errors.of_reason(reason, "Text of the server.", 2.0)
        assert error.reason == reason and error.retry_after == 2.0
        assert str(error) == f"Text of the server. Next: {error.next_step}"
        assert len(error.next_step) > 10


def test_a_reason_of_a_later_release_is_an_error_too():
    error = errors.of_reason("BRAND_NEW", "It is new.")
    assert isinstance(error, berth.ServerError) and error.reason == "BRAND_NEW" and "docs/errors.md" in str(error)


def test_every_raise_of_the_package_has_a_next_step():
    """By its source: no error of the package is made without one."""
    names = {one.__name__ for one in ALL} | {"kind"}
    made = 0
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                assert "next_step" in given, f"{file.name}:{node.lineno}"
                step = given["next_step"]
                assert not (isinstance(step, ast.Constant) and len(step.value) < 10), f"{file.name}:{node.lineno}"
                made += 1
    assert made > 40


@pytest.mark.parametrize("kind", ALL)
def test_errors_are_copied_with_all_that_they_say(kind):
    error = kind("It failed.", next_step="do something else", reason="R", retry_after=1.5)
    for again in (copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert (str(again), again.reason, again.retry_after) == (str(error), "R", 1.5)


def test_errors_are_also_the_usual_ones_of_python():
    assert issubclass(berth.ConfigurationError, ValueError)
    assert issubclass(berth.Unreachable, ConnectionError)
    assert issubclass(berth.StartTimeout, TimeoutError)
    assert issubclass(berth.PermissionDenied, PermissionError)
    assert issubclass(berth.LoginRequired, berth.CredentialError)


def test_a_secret_is_a_string_that_does_not_show():
    secret = Secret("topsecret")
    assert secret == "topsecret" and secret.encode() == b"topsecret"
    for shown in (repr(secret), repr([secret]), repr({"a": (secret,)}), repr(bearer(secret)), f"{secret!r}"):
        assert "topsecret" not in shown and HIDDEN in shown
    for shown in (repr(hidden("topsecret")), repr(hidden(b"topsecret"))):
        assert shown == HIDDEN
    assert hidden(None) is None and hidden(b"topsecret") == "topsecret"
    assert copy.deepcopy(secret) is secret
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps({"key": secret})
