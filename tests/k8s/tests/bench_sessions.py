"""`make bench-k8s`: how long sessions take on the real cluster, with and without warm pods.

Times come from the logs of session-manager and of the engines, so the start of the command does not count. Prints a
table and writes target/bench/k8s.json.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import kube
import pytest
from test_sessions import ANCHOR, REPOSITORY, Services, api_writes, definition

SPACE = "sessions"
# The CPU of a pod is request and limit, and the node has two.
SAIL = {"image": "berth.test/sail:test", "cpu": "150m", "memory": "512Mi"}
INSTANT_ENGINE = "berth.test/engine:1"
"""Answers at once, so that the rest of a start remains (cluster/engine)."""
WARM_PODS = int(os.environ.get("BENCH_WARM_PODS", "5"))
CREATES = int(os.environ.get("BENCH_CREATES", "20"))
AT_ONCE = [int(text) for text in os.environ.get("BENCH_AT_ONCE", "5").split(",")]
IDLE = int(os.environ.get("BENCH_IDLE", "2"))
CLUSTERS = {
    "cold": ("sail", definition(**{**SAIL, "cpu": "1"})),
    "instant": ("sail", definition(image=INSTANT_ENGINE, cpu="100m", memory="32Mi")),
    "many": ("sail", definition(**SAIL)),
    "warm": ("sail", definition(**SAIL, warm_pods=WARM_PODS)),
}
LIMITS = """
[[orgs]]
name = "acme"
limits = { live_sessions_per_owner = 1000, creates_per_minute = 10000 }
"""
FIGURES: dict[str, Any] = {}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    kube.apply(kube.namespace(SPACE), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ANCHOR, "namespace": SPACE}})
    running = Services(tmp_path_factory.mktemp("bench"), clusters=CLUSTERS, settings=LIMITS)
    yield running
    running.stop()
    kube.kubectl("delete", "namespace", "--timeout=100s", SPACE)
    folder = REPOSITORY / "target" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "k8s.json").write_text(json.dumps({"machine": platform.platform(), "cores": os.cpu_count(), **FIGURES}, indent=1))


def record(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    FIGURES[name] = {"n": len(seconds), "min": ordered[0], "p50": statistics.median(ordered), "p99": p99, "max": ordered[-1], "load": os.getloadavg()[0]}
    print(f"{name}: p50 {statistics.median(ordered) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, max {ordered[-1] * 1000:.0f} ms, n = {len(seconds)}, load {os.getloadavg()[0]:.1f}")


def instant(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp()


def log(services: Services) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (services.folder / "session-manager.log").read_text().splitlines() if line.startswith("{")]


def create(services: Services, cluster: str) -> str:
    return services.berth("create", "--cluster", cluster, "--wait")["id"]


def to_active(lines: list[dict[str, Any]], sessions: list[str]) -> list[float]:
    """From the creation of each session to the commit of its first `active`."""
    created = {line["session"]: instant(line) for line in lines if line["message"] == "session created"}
    active = active_at(lines)
    return [active[session] - created[session] for session in sessions]


def listening_since(session: str) -> float:
    """When the engine of a session began to listen: the time at which the runtime received the line of its log."""
    lines = kube.kubectl("-n", SPACE, "logs", f"{session}-g1", "--timestamps").splitlines()
    line = next(line for line in lines if line.endswith("listening") or "Starting the Spark Connect server" in line)
    # Nanoseconds are more than datetime reads.
    return datetime.fromisoformat(line.split()[0][:26] + "+00:00").timestamp()


def first_answers(lines: list[dict[str, Any]], sessions: list[str]) -> list[float]:
    """How long an engine that accepts connections takes for its first answer, in seconds."""
    return [seconds(line["after_listening"]) for line in lines if line["message"] == "engine ready" and line["session"] in sessions]


def active_at(lines: list[dict[str, Any]]) -> dict[str, float]:
    """When each session was first active."""
    active: dict[str, float] = {}
    for line in lines:
        if line["message"] == "session changed" and line["to"] == "active":
            active.setdefault(line["session"], instant(line))
    return active


def claims(lines: list[dict[str, Any]], sessions: list[str]) -> list[float]:
    return [seconds(line["time"]) for line in lines if line["message"] == "warm pod claimed" and line["session"] in sessions]


def close_all(services: Services, sessions: list[str]) -> None:
    for session in sessions:
        services.berth("close", session)
    selector = "berth/session"
    kube.wait_until("no pod of a session", lambda: not kube.get("-n", SPACE, "pods", "-l", selector)["items"], timeout=180, interval=1)


DURATION = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+)(ns|µs|ms|s)", text)
    assert found, text
    return float(found[1]) * DURATION[found[2]]


def wait_pool(services: Services, size: int) -> None:
    def full() -> bool:
        (pool,) = services.berth("clusters", "show", "warm")["provider"]["kubernetes"]["warm_pools"]
        return pool["available"] >= size

    kube.wait_until("the pool is full", full, timeout=300, interval=1)


@pytest.mark.parametrize("cluster", ["cold", "instant"])
def test_cold_one_at_a_time(services: Services, cluster: str) -> None:
    wait_pool(services, WARM_PODS)
    before, sessions, listening = api_writes(), [], []
    for _ in range(CREATES):
        sessions.append(create(services, cluster))
        listening.append(listening_since(sessions[-1]))
        close_all(services, sessions[-1:])
    made = api_writes() - before
    lines = log(services)
    active = active_at(lines)
    record(f"{cluster}, create to active", to_active(lines, sessions))
    record(f"{cluster}, engine listens to active", [active[session] - since for session, since in zip(sessions, listening, strict=True)])
    record(f"{cluster}, of these the first answer", first_answers(lines, sessions))
    FIGURES[f"writes of {cluster} generations"] = {"generations": CREATES, **made}
    print(f"writes of {CREATES} generations: {dict(made)}")


@pytest.mark.parametrize("count", AT_ONCE)
def test_cold_at_once(services: Services, count: int) -> None:
    with ThreadPoolExecutor(count) as many:
        sessions = list(many.map(lambda _: create(services, "many"), range(count)))
    record(f"cold, {count} at once", to_active(log(services), sessions))
    close_all(services, sessions)


def test_warm_one_at_a_time(services: Services) -> None:
    before, sessions = api_writes(), []
    for _ in range(CREATES):
        wait_pool(services, 1)
        sessions.append(create(services, "warm"))
        # Room for the next pod.
        close_all(services, sessions[-1:])
    wait_pool(services, WARM_PODS)
    made = api_writes() - before
    lines = log(services)
    record("warm, create to active", to_active(lines, sessions))
    record("claim", claims(lines, sessions))
    FIGURES["writes of warm generations"] = {"generations": CREATES, **made}
    print(f"writes of {CREATES} generations: {dict(made)}")


@pytest.mark.parametrize("count", AT_ONCE)
def test_warm_at_once(services: Services, count: int) -> None:
    count = min(count, WARM_PODS)
    wait_pool(services, WARM_PODS)
    with ThreadPoolExecutor(count) as many:
        sessions = list(many.map(lambda _: create(services, "warm"), range(count)))
    lines = log(services)
    record(f"warm, {count} at once", to_active(lines, sessions))
    found = claims(lines, sessions)
    print(f"hits: {len(found)} of {count}")
    record(f"claim, {count} at once", found)
    close_all(services, sessions)


def test_first_query_after_idle(services: Services) -> None:
    by_cluster = {cluster: [create(services, cluster) for _ in range(IDLE)] for cluster in ("many", "warm")}
    everything = [session for sessions in by_cluster.values() for session in sessions]
    for session in everything:
        services.query(session)
    idle = lambda: all(services.berth("show", session)["status"] == "idle" for session in everything)  # noqa: E731
    kube.wait_until("all are idle", idle, timeout=300, interval=5)
    kube.wait_until("no pod of a session", lambda: not kube.get("-n", SPACE, "pods", "-l", "berth/session")["items"], timeout=120)
    wait_pool(services, WARM_PODS)
    time.sleep(5)
    for cluster, sessions in by_cluster.items():
        record(f"first query after idle, {cluster}", [services.timed_query(session)[1] for session in sessions])
    close_all(services, everything)
