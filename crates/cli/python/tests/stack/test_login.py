"""A sign-in by device at a real OpenID provider (npm `oidc-provider`), in the store of the berth command."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ENGINE, START, STACK

import berth
from berth import _login

pytestmark = pytest.mark.skipif(not (STACK and STACK["oidc"]), reason="this run has no identity provider")
#: Seconds that an access token of the provider lives.
LIFE = 15

PROGRAM = """
import time, sys, berth
from berth import _credential
_credential.is_interactive = lambda: sys.argv[1] == "person"
spark = berth.connect(cluster=sys.argv[2], timeout=sys.argv[3])
print(spark.range(3).count(), flush=True)
time.sleep(float(sys.argv[4]))
print(spark.berth.status, flush=True)
"""


@pytest.fixture
def folder(environment, tmp_path):
    """A context with the provider, and no other credential."""
    environment.delenv("BERTH_KEY")
    environment.setenv("BERTH_CONTEXT", "e2e")
    (tmp_path / "config.toml").write_text(
        f"""
current = "e2e"
[contexts.e2e.oidc]
issuer = "{STACK['oidc']['issuer']}"
client_id = "berth-cli"
scopes = ["openid", "offline_access", "berth"]
resource = "urn:berth"
"""
    )
    return tmp_path


def program(who, wait):
    arguments = [sys.executable, "-c", PROGRAM, who, ENGINE, f"{START}s", str(wait)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def visit(line):
    """The person opens the address and agrees."""
    address, code = line.split("open ")[1].split(" and enter the code ")
    url = f"{address}?user_code={code.strip().rstrip('.')}"
    node = ["node", "login.mjs", "user", url]
    subprocess.run(node, cwd=STACK["oidc"]["dir"], check=True, capture_output=True, timeout=60)


def test_a_person_signs_in_by_device_and_stays_signed_in(folder):
    first = program("person", LIFE + 3)
    line = first.stderr.readline()
    assert "To sign in, open http" in line, line + first.stderr.read()
    visit(line)
    out, err = first.communicate(timeout=180)
    assert first.returncode == 0, err
    # The second line needed a renewed sign-in.
    assert out.split() == ["3", "active"]
    store = folder / "tokens" / "e2e.json"
    assert store.stat().st_mode & 0o777 == 0o600
    stored = json.loads(store.read_text())
    assert set(stored) == {"issuer", "client_id", "token", "refresh_token", "obtained_at", "expires_at"}
    for secret in (stored["token"], stored["refresh_token"]):
        assert secret not in err + out
    # The command and a program without a person use it too.
    whoami = subprocess.run([STACK["berth"], "--output", "json", "whoami"], capture_output=True, text=True, timeout=60)
    assert whoami.returncode == 0 and json.loads(whoami.stdout)["principal"] == "corp|ada", whoami.stderr
    out, err = program("service", 0).communicate(timeout=180)
    assert out.split() == ["3", "active"], err


def test_without_a_person_the_error_names_the_command(folder):
    out, err = program("service", 0).communicate(timeout=60)
    assert out == "" and "LoginRequired" in err and "Next: run `berth login`" in err


def test_a_sign_in_that_ended_is_an_error_that_says_so(folder):
    (folder / "tokens").mkdir()
    now = int(time.time())
    stored = {
        "issuer": STACK["oidc"]["issuer"],
        "client_id": "berth-cli",
        "token": "old",
        "refresh_token": "unknown-to-the-provider",
        "obtained_at": now - 100,
        "expires_at": now - 1,
    }
    store = folder / "tokens" / "e2e.json"
    store.write_text(json.dumps(stored))
    os.chmod(store, 0o600)
    with pytest.raises(berth.LoginRequired, match="has ended.*Next: run `berth login`") as caught:
        berth.connect(cluster=ENGINE)
    assert "unknown-to-the-provider" not in repr(_login._load("e2e"))
    assert caught.value.reason == "LOGIN_REQUIRED"
