"""The examples of docs/python.md run as they are written."""

import pathlib
import re

import pytest
from conftest import ENGINE, STACK, live_named

import berth

DOCUMENT = pathlib.Path(__file__).resolve().parents[5] / "docs" / "python.md"


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)


def adapted(text):
    """The cluster of the stack in place of the example's."""
    return text.replace('cluster="local"', f'cluster="{ENGINE}"').replace("--cluster local", f"--cluster {ENGINE}")


#: A text of an example = what it prints.
PRINTS = {
    "SHOW TABLES": r"\|tableName\|isTemporary\|",
    'idle="30m"': r"^s-\w+ active\n10\n$",
    "keep_alive(": r"^3 \[\]\n$",
    'pathlib.Path("key")': r"^5\n$",
    'cluster="nowhere"': r"^[A-Z_]+ \w.{20,}\n$",
}


@pytest.mark.parametrize("text", blocks("python"))
def test_an_example(text, tmp_path, environment, capsys):
    environment.chdir(tmp_path)
    (tmp_path / "key").write_text(STACK["keys"]["ada"])
    exec(compile(adapted(text), "docs/python.md", "exec"), {"__name__": "example"})
    [expected] = [pattern for part, pattern in PRINTS.items() if part in text]
    assert re.search(expected, capsys.readouterr().out)


def test_each_example_has_its_output():
    assert len(blocks("python")) == len(PRINTS)


def test_the_notebook_example(kernel):
    from test_notebook import run

    [text] = blocks("jupyter")
    outputs, _ = run(kernel, [adapted(cell) for cell in re.split(r"\n\n", text.strip())])
    assert [line.split()[-1] for line in outputs[3].splitlines() if line] == ["id", "2", "3", "4"]
    assert "berth: closed" in outputs[-1]


def test_every_class_of_error_is_documented():
    text = DOCUMENT.read_text()
    for name in berth.__all__:
        documented = re.search(rf"`{name}`|\bberth\.{name}\b", text)
        assert documented or name.endswith("_ipython_extension"), name


@pytest.fixture(autouse=True)
def named_sessions_end():
    yield
    for one in live_named("etl"):
        berth.session(one).close()
