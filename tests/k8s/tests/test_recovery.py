"""The guides for disasters, word for word: docs/runbook.md (backup and restore of Redis, losing all data, losing the
signing keys) and docs/kubernetes.md (rollback). Redis runs on this machine, as an operator's own server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import berth
import kube
import pytest
from test_operations import internal_port
from test_sessions import free_port

HOST = "10.250.0.1"
"""This machine, as pods reach it."""
CLOSED = "The session is closed, or does not exist"
"""PySpark shows the text of SESSION_CLOSED."""
INVALID = "The token is not valid here"
"""And that of TOKEN_INVALID."""
SUM = "SELECT sum(id) FROM range(1000)"


class Redis:
    """A server of this machine with an append-only file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.start("yes")

    def start(self, append_only: str) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", HOST, "--protected-mode", "no", "--dir", str(self.folder),
                   "--dbfilename", "dump.rdb", "--save", "", "--appendonly", append_only, "--maxmemory-policy", "noeviction"]  # fmt: skip
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        kube.wait_until("Redis answers", lambda: self._answers(), timeout=20, interval=0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)

    def cli(self, *args: str) -> str:
        return kube.run("redis-cli", "-h", HOST, "-p", str(self.port), *args).strip()

    def _answers(self) -> bool:
        try:
            return self.cli("ping") == "PONG"
        except kube.CommandError:
            return False

    def remove_data(self) -> None:
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "dump.rdb").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, redis: Redis) -> Iterator[berth.Berth]:
    yield berth.Berth(tmp_path_factory.mktemp("berth"), redis={"url": f"redis://{HOST}:{redis.port}"})
    berth.remove_namespaces(berth.SESSIONS)


@pytest.fixture(scope="module")
def client(installation: berth.Berth) -> kube.PythonPod:
    return installation.client("client")


def create(installation: berth.Berth, cluster: str = "shared") -> tuple[str, str]:
    """Id and connection string of a new session."""
    session = installation.command("create", "--cluster", cluster, "--wait")["id"]
    return session, installation.command("token", session)["connection_url"]


def answers(client: kube.PythonPod, url: str) -> bool:
    return client.python(berth.QUERY, url, SUM).strip() == "499500"


def error_of(client: kube.PythonPod, url: str) -> str:
    """The error of a query, empty if it succeeds."""
    try:
        client.python(berth.QUERY, url, SUM)
    except kube.CommandError as error:
        print(str(error)[-600:])
        return str(error)
    return ""


def listed(installation: berth.Berth) -> Any:
    """The sessions that are listed; `None` while Redis is away."""
    try:
        found = installation.command("list")
    except AssertionError as error:
        print(error)
        return None
    return {session["id"]: session["status"].lower() for session in found}


def compute_states() -> dict[str, float]:
    """session_manager_compute by state."""
    with internal_port("session-manager", 9081) as address:
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read().decode()
    return {state: float(value) for state, value in re.findall(r'^session_manager_compute\{[^}]*state="(\w+)"[^}]*\} (\S+)$', text, re.MULTILINE)}


def manager_log() -> str:
    return kube.kubectl("-n", berth.SPACE, "logs", "deployment/berth-session-manager", "--tail=-1")


def pods_of(session: str) -> list[str]:
    return kube.kubectl("-n", berth.SESSIONS, "get", "pods", "-l", f"berth/session={session}", "-o", "name").split()


def test_a_restore_of_older_data(installation: berth.Berth, client: kube.PythonPod, redis: Redis, tmp_path: Path) -> None:
    kept, kept_url = create(installation)
    closed, _ = create(installation)
    backup = tmp_path / "berth.rdb"
    redis.cli("--rdb", str(backup))
    assert redis.cli("CONFIG", "GET", "appendonly").split() == ["appendonly", "yes"]
    installation.command("close", closed)
    later, later_url = create(installation, "pods")
    assert answers(client, later_url)

    redis.stop()
    redis.remove_data()
    shutil.copy(backup, redis.folder / "dump.rdb")
    redis.start("no")
    redis.cli("CONFIG", "SET", "appendonly", "yes")

    found = kube.wait_until("sessions are listed", lambda: listed(installation), timeout=60)
    assert kept in found and later not in found, found
    assert "store epoch increased" in manager_log()
    assert answers(client, kept_url), "its token is still valid"
    assert CLOSED in error_of(client, later_url)
    # What was closed since the backup is live again, unless its manager repeats the end, because `redis-cli --rdb` looked
    # like a replica and did not have it.
    if closed in found:
        installation.command("close", closed)
    kube.wait_until("it is closed", lambda: closed not in listed(installation), timeout=30)
    # Its compute keeps running, and is counted.
    assert pods_of(later)
    kube.wait_until("it is quarantined", lambda: compute_states().get("quarantined") == 1, timeout=120, interval=2)
    kube.kubectl("-n", berth.SESSIONS, "delete", "pods", "-l", f"berth/session={later}")
    # And the append-only file is in use again.
    redis.stop()
    redis.start("yes")
    assert kept in kube.wait_until("sessions are listed", lambda: listed(installation), timeout=60)


def test_losing_all_data(installation: berth.Berth, client: kube.PythonPod, redis: Redis) -> None:
    _, url = create(installation, "pods")
    redis.stop()
    redis.remove_data()
    redis.start("yes")
    kube.wait_until("all sessions are lost", lambda: CLOSED in error_of(client, url), timeout=60)
    kube.kubectl("-n", berth.SESSIONS, "delete", "pods", "-l", "berth/session")
    # session-manager writes the clusters of the configuration when it restarts.
    kube.kubectl("-n", berth.SPACE, "rollout", "restart", "deployment/berth-session-manager")
    kube.kubectl("-n", berth.SPACE, "rollout", "status", "deployment/berth-session-manager", "--timeout=100s")
    names = [cluster["name"] for cluster in installation.command("clusters")]
    assert sorted(names) == ["pods", "shared"]
    for cluster in names:
        session, url = create(installation, cluster)
        assert answers(client, url)
        installation.command("close", session)
    kube.wait_until("no pod is left", lambda: not kube.get("-n", berth.SESSIONS, "pods")["items"], timeout=60)


def restart_token_issuer() -> None:
    kube.kubectl("-n", berth.SPACE, "delete", "pods", "-l", "app.kubernetes.io/component=token-issuer")


def wait_token_issuer() -> None:
    kube.kubectl("-n", berth.SPACE, "rollout", "status", "deployment/berth-token-issuer", "--timeout=110s")


def is_issued(installation: berth.Berth, session: str) -> str:
    """A new connection string; empty while there is none."""
    try:
        return installation.command("token", session)["connection_url"]
    except AssertionError as error:
        print(error)
        return ""


def test_losing_the_signing_keys(installation: berth.Berth, client: kube.PythonPod, tmp_path: Path) -> None:
    session, url = create(installation)
    saved = kube.kubectl("-n", berth.SPACE, "get", "secret", "signing-keys", "-o", "json")
    kube.kubectl("-n", berth.SPACE, "delete", "secret", "signing-keys")
    # A running token-issuer keeps its keys; a restart fails, and sessions continue.
    assert is_issued(installation, session)
    restart_token_issuer()
    waiting = lambda: "FailedMount" in kube.kubectl("-n", berth.SPACE, "get", "events", "-o", "json")  # noqa: E731
    kube.wait_until("the Secret is missed", waiting, timeout=60)
    assert answers(client, url)
    # Restored from a backup: tokens stay valid.
    kube.kubectl("apply", "-f", "-", stdin=saved)
    wait_token_issuer()
    assert answers(client, url)
    # Without a backup: a new key.
    kube.kubectl("-n", berth.SPACE, "delete", "secret", "signing-keys")
    restart_token_issuer()
    program = Path(os.environ["BERTH_PROGRAMS"]) / "berth"
    kube.run(str(program), "keys", "secret", "signing-keys", "--namespace", berth.SPACE)
    wait_token_issuer()
    new = kube.wait_until("a token is issued", lambda: is_issued(installation, session), timeout=60)
    kube.wait_until("the new token is accepted", lambda: not error_of(client, new), timeout=90)
    kube.wait_until("the old token is rejected", lambda: INVALID in error_of(client, url), timeout=90)
    assert installation.command("show", session)["status"].lower().endswith("active")


def test_a_rollback_repairs_a_failed_upgrade(installation: berth.Berth, client: kube.PythonPod) -> None:
    session, url = create(installation)
    good = installation.values
    manager = {**good["sessionManager"], "config": {**good["sessionManager"]["config"], "nonsense": 1}}
    upgrade = ["helm", "upgrade", berth.RELEASE, str(berth.CHART), "-n", berth.SPACE, "--reuse-values", "--wait", "--timeout", "30s"]
    with pytest.raises(kube.CommandError):
        kube.run(*upgrade, "--set", f"sessionManager.config.nonsense={manager['config']['nonsense']}")
    assert answers(client, url), "the old pods stay until the new ones are ready"
    states = kube.run("helm", "history", berth.RELEASE, "-n", berth.SPACE)
    assert "failed" in states, states
    kube.run("helm", "rollback", berth.RELEASE, "-n", berth.SPACE, "--wait", "--timeout", "5m", timeout=330)
    assert "Rollback to" in kube.run("helm", "history", berth.RELEASE, "-n", berth.SPACE)
    assert answers(client, url)
    installation.command("close", session)
