"""A notebook, run by nbclient: the extension, its magics, binding, progress, interrupt."""

import nbformat
from conftest import ENGINE, START, STACK, assert_hidden, command, live_named, on_sail, status_of
from nbclient import NotebookClient

SLOW = """
import time
def wait(seconds):
    import time
    time.sleep(seconds)
    return seconds
spark.udf.register("slow", wait, "int")
import os, signal, threading
def press_ctrl_c(after):
    # As Jupyter's stop button sends it.
    threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
"""


def run(kernel, cells):
    """Runs the cells, of which those that end with #fails may fail; returns what each one showed."""
    book = nbformat.v4.new_notebook()
    for text in cells:
        cell = nbformat.v4.new_code_cell(text.removesuffix("#fails"))
        cell.metadata["tags"] = ["raises-exception"] if text.endswith("#fails") else []
        book.cells.append(cell)
    NotebookClient(book, kernel_name=kernel, timeout=START + 60).execute()
    return [shown(cell) for cell in book.cells], nbformat.writes(book)


def shown(cell):
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append(f"{output.ename}: {output.evalue}\n" + "\n".join(output.traceback))
        else:
            parts.append(output.data.get("text/plain", ""))
    return "\n".join(parts)


def test_a_notebook_from_connect_to_close(kernel, name):
    cells = {
        "load": "%load_ext berth",
        "help": "%berth",
        "connect": f"%berth connect --cluster {ENGINE} --name {name} --label team=data --idle 10m --timeout {START}s",
        "again": f"%berth connect --cluster {ENGINE} --name {name} --label team=data --idle 10m --timeout {START}s",
        "python": "print(spark.range(3).count(), spark.berth.name)",
        "variables": "import datetime\nat_least, word, day = 2, \"it's\", datetime.date(2026, 1, 31)",
        "bind": "%%sql\nSELECT id, :word AS w, :day AS d, ':no' AS n FROM range(5) WHERE id >= :at_least;",
        "limit": "%%sql --limit 2 --out frame\nSELECT id FROM range(10)",
        "out": "print('counted', frame.count())",
        "missing": "%%sql\nSELECT :nowhere#fails",
        "option": "%%sql --limits 3\nSELECT 1#fails",
        "command": "%berth conect#fails",
        "wrong": "%%sql\nSELECT no_such_column#fails",
        "verbose": "%xmode Verbose",
        "wrong verbose": "%%sql\nSELECT no_such_column#fails",
        "slow": SLOW,
        "interrupt": "press_ctrl_c(5)\nget_ipython().run_cell_magic('sql', '', ENDLESS)#fails",
        "interrupt python": "press_ctrl_c(5)\nspark.sql(ENDLESS).collect()#fails",
        "running": "import time\nfor _ in range(100):\n    left = list_operations()\n"
        "    if not left: break\n    time.sleep(0.2)\nprint('left', left)",
        "after": "%%sql\nSELECT 7 * 6 AS answer",
        "status": "%berth status",
        "close": "%berth close",
        "closed": "%berth status#fails",
    }
    endless = "SELECT slow(100)" if ENGINE == "spark" else "SELECT sum(id) FROM range(1000000000000)"
    cells["slow"] += (
        f"ENDLESS = {endless!r}\n"
        "import json, subprocess\n"
        "def list_operations():\n"
        f"    asked = [{STACK['berth']!r}, '--output', 'json', 'operation', 'list', spark.berth.id]\n"
        "    return json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)\n"
    )
    outputs, text = run(kernel, list(cells.values()))
    seen = dict(zip(cells, outputs))
    assert "%berth connect [--cluster" in seen["help"]
    assert f"on {ENGINE} (" in seen["connect"] and name in seen["connect"]
    assert "still connected" in seen["again"]
    assert f"3 {name}" in seen["python"]
    assert "it's" in seen["bind"] and "2026-01-31" in seen["bind"] and ":no" in seen["bind"]
    assert [line.split()[1] for line in seen["bind"].splitlines() if "it's" in line] == ["2", "3", "4"]
    assert "the first 2 rows" in seen["limit"] and "counted 10" in seen["out"]
    assert "no variable for :nowhere. Next: set nowhere" in seen["missing"]
    assert "--limits" in seen["option"] and "Next: %berth help" in seen["option"]
    assert "'conect'" in seen["command"] and "Next: %berth help" in seen["command"]
    assert "no_such_column" in seen["wrong"] and "no_such_column" in seen["wrong verbose"]
    assert "KeyboardInterrupt" in seen["interrupt"] and "KeyboardInterrupt" in seen["interrupt python"]
    assert "left []" in seen["running"]
    assert "42" in seen["after"]
    assert "active" in seen["status"]
    assert "berth: closed s-" in seen["close"] and "Next: %berth connect" in seen["closed"]
    assert live_named(name) == []
    assert_hidden([STACK["keys"]["ada"]], text)
    assert "eyJ" not in text, "a token is a JWT, which begins so"


@on_sail
def test_another_connect_closes_the_former_session_without_a_name(kernel, name):
    connect = f"%berth connect --cluster {ENGINE} --timeout {START}s"
    cells = {
        "load": "%load_ext berth",
        "first": connect,
        "id": "print('id', spark.berth.id)",
        "stop": "spark.stop()",
        "stopped": connect,
        "same": "print('id', spark.berth.id, spark.range(3).count())",
        "named": f"{connect} --name {name}",
        "other": f"{connect} --idle 10m",
        "end": "print('id', spark.berth.id)",
        "close": "%berth close",
    }
    outputs, _ = run(kernel, list(cells.values()))
    seen = dict(zip(cells, outputs))
    first = seen["id"].split()[1]
    # The SparkSession was stopped, so there is another one on the same session.
    assert "still connected" in seen["stopped"] and seen["same"].split() == ["id", first, "3"]
    assert f"closed the former session {first}" in seen["named"] and status_of(first) == "closed"
    assert "former" not in seen["other"] and len(live_named(name)) == 1
    assert status_of(seen["end"].split()[1]) == "closed"
    command("session", "close", live_named(name)[0])


@on_sail
def test_a_session_that_berth_no_longer_lists_is_replaced(kernel):
    connect = f"%berth connect --cluster {ENGINE} --timeout {START}s"
    # An id that Berth does not have, as that of a session that ended long ago.
    unlist = (
        "from berth import _session\n"
        "made = spark.berth\nmade.id = 's-00000000000000000000'\n_session.close_at_exit(made._control, made.id)"
    )
    cells = ["%load_ext berth", connect, unlist, connect, "print(spark.range(3).count())", "%berth close"]
    outputs, _ = run(kernel, cells)
    assert "still connected" not in outputs[3] and "former" not in outputs[3]
    assert "3" in outputs[4] and "berth: closed" in outputs[5]


def test_a_notebook_that_runs_as_a_batch_does_not_wait_for_a_sign_in(kernel, environment, tmp_path):
    environment.delenv("BERTH_KEY")
    (tmp_path / "config.toml").write_text(
        'current = "c"\n[contexts.c.oidc]\nissuer = "https://login.example.org"\nclient_id = "berth-cli"\n'
    )
    outputs, _ = run(kernel, ["%load_ext berth", "%berth connect#fails"])
    assert "not signed in at https://login.example.org. Next: run `berth login`" in outputs[1]


def test_the_extension_can_be_loaded_again_and_removed(kernel):
    outputs, _ = run(kernel, ["%load_ext berth", "%reload_ext berth", "%berth", "%unload_ext berth", "%berth#fails"])
    assert "%berth connect" in outputs[2] and "not found" in outputs[4]
