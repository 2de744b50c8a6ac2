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
    """The cluster of the stack, and its address in place of an example's."""
    text = text.replace('cluster="local"', f'cluster="{ENGINE}"').replace("--cluster local", f"--cluster {ENGINE}")
    return text


@pytest.mark.parametrize("text", blocks("python"))
def test_an_example(text, tmp_path, environment):
    environment.chdir(tmp_path)
    (tmp_path / "key").write_text(STACK["keys"]["ada"])
    exec(compile(adapted(text), "docs/python.md", "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(blocks("python")) >= 5 and len(blocks("jupyter")) >= 1


def test_the_notebook_example(environment, tmp_path):
    from test_notebook import run

    import json
    import sys

    folder = tmp_path / "kernels" / "berth-test"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "test", "language": "python"}))
    environment.setenv("JUPYTER_PATH", str(tmp_path))
    environment.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for text in blocks("jupyter"):
        cells = [adapted(cell) for cell in re.split(r"\n\n", text.strip())]
        outputs, _ = run("berth-test", cells)
        assert any("berth: closed" in output for output in outputs)


def test_every_class_of_error_is_documented():
    text = DOCUMENT.read_text()
    for name in berth.__all__:
        assert f"`{name}`" in text or f"berth.{name}" in text or name.endswith("_ipython_extension"), name


@pytest.fixture(autouse=True)
def named_sessions_end():
    yield
    for one in live_named("etl"):
        berth.session(one).close()
