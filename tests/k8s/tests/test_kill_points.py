"""session-manager is killed at each of its calls to the API server, and the API server at some: within 60 s
every live session has exactly its pod, and there is no other pod.

Kills come in batches, a few seconds apart, so that a recovery is interrupted too. The invariant is checked
60 s after the last kill of a batch at the latest.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kube
import pytest
from api_proxy import ApiProxy
from test_sessions import ANCHOR, Services, definition

SPACE = "sessions"
CLUSTER = Path(__file__).resolve().parents[1] / "cluster" / "cluster.sh"
LIMIT = 60.0
WARM_PODS = 3
SAIL = {"image": "berth.test/sail:test", "cpu": "100m", "memory": "512Mi"}
CLUSTERS = {
    # The secret makes session-manager create a Secret for each pod.
    "cold": ("sail", definition(**SAIL).replace("{", '{ properties = { AWS_SECRET_ACCESS_KEY = "${BERTH_SECRET_KILLS}" },', 1)),
    "warm": ("sail", definition(**SAIL, warm_pods=WARM_PODS)),
}
LIMITS = """
[[orgs]]
name = "acme"
limits = { live_sessions_per_owner = 100, creates_per_minute = 1000 }
"""
CREATE = ["GET configmaps", "POST pods", "POST secrets"]
CLAIM = ["PATCH pods", "LIST generation"]
REFILL = ["GET configmaps", "POST pods"]
CLOSE = ["DELETE pods", "GET pods", "LIST generation"]
MOMENTS = ("before", "after")
Point = tuple[str, str]


def points(*calls: str) -> list[Point]:
    return [(call, when) for call in calls for when in MOMENTS]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Services, ApiProxy]]:
    kube.apply(kube.namespace(SPACE), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ANCHOR, "namespace": SPACE}})
    folder = tmp_path_factory.mktemp("kills")
    proxy = ApiProxy(folder)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BERTH_SECRET_KILLS", "not-a-real-key")
        services = Services(folder, clusters=CLUSTERS, settings=LIMITS, kubeconfig=proxy.kubeconfig)
        yield services, proxy
        services.stop()
    proxy.stop()
    kube.kubectl("delete", "namespace", "--timeout=120s", SPACE)


def live_pods() -> list[dict[str, Any]]:
    return kube.get("-n", SPACE, "pods")["items"]


def sessions(services: Services) -> dict[str, dict[str, Any]]:
    return {session["id"]: session for session in services.berth("list", "--limit", "500")}


def problems(services: Services) -> list[str]:
    """What contradicts the invariant now."""
    try:
        known = sessions(services)
    except AssertionError as error:
        return [f"the sessions cannot be listed: {error}"]
    found = []
    pods: dict[str, list[str]] = {}
    pool = 0
    for pod in live_pods():
        labels, name = pod["metadata"]["labels"], pod["metadata"]["name"]
        if "berth/session" not in labels:
            pool += 1
        elif "deletionTimestamp" in pod["metadata"]:
            found.append(f"{name} is being deleted")
        else:
            pods.setdefault(labels["berth/session"], []).append(labels["berth/generation"])
    for session, shown in known.items():
        status, generations = shown["status"], pods.pop(session, [])
        if status == "pending":
            found.append(f"{session} is pending")
        wanted = [str(shown["generation"])] if status == "active" else []
        if generations != wanted:
            found.append(f"{session} is {status}, generation {shown['generation']}, but has pods of {generations}")
    found += [f"pods of {session}, which does not exist" for session in pods]
    if pool != WARM_PODS:
        found.append(f"{pool} warm pods")
    return found


def settle(services: Services, what: str) -> float:
    """Waits until the invariant holds twice in a row; returns the seconds."""
    begun = time.monotonic()
    good = 0
    while good < 2:
        wrong = problems(services)
        good = 0 if wrong else good + 1
        assert time.monotonic() - begun < LIMIT, f"{what}: not within {LIMIT} s: {wrong}"
        time.sleep(0.5)
    return time.monotonic() - begun


def attempt(services: Services, *args: str) -> threading.Thread:
    """Runs a command that may fail, because session-manager is killed."""

    def run() -> None:
        try:
            services.berth(*args)
        except (AssertionError, subprocess.TimeoutExpired):
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def kill_at(services: Services, proxy: ApiProxy, point: Point, *command: str, of_pool: bool) -> None:
    """Kills session-manager at a call that the command leads to, and starts it again."""
    call, when = point
    if of_pool:
        wait_pool(services)
    proxy.arm(call, when, lambda: services.kill("session-manager"))
    running = attempt(services, *command)
    if not proxy.fired.wait(timeout=45):
        proxy.disarm()
        raise AssertionError(f"no call {call} after {command}; the last: {proxy.calls[-20:]}")
    services.start_service("session-manager", "manager_admin")
    running.join(timeout=5)
    time.sleep(1)


def wait_pool(services: Services) -> None:
    """Waits until a warm pod can be claimed; the lease of a killed manager runs on for 15 s."""

    def available() -> bool:
        (pool,) = services.berth("clusters", "show", "warm")["provider"]["kubernetes"]["warm_pools"]
        return pool["available"] > 0

    kube.wait_until("a warm pod", available, timeout=60)


def batch(services: Services, proxy: ApiProxy, what: str, kills: list[tuple[Point, tuple[str, ...]]], *, of_pool: bool) -> None:
    for point, command in kills:
        kill_at(services, proxy, point, *command, of_pool=of_pool)
    seconds = settle(services, what)
    print(f"{what}: {len(kills)} kills, all in order {seconds:.1f} s after the last")


def of(services: Services, cluster: str, status: str) -> list[str]:
    return [name for name, shown in sessions(services).items() if shown["cluster"] == cluster and shown["status"] == status]


def active_sessions(services: Services, cluster: str, count: int) -> list[str]:
    """Active sessions: those that are there, and new ones for creates that ended with their manager."""
    active = of(services, cluster, "active")
    return active + [services.berth("create", "--cluster", cluster, "--wait")["id"] for _ in range(count - len(active))]


def create_idle(services: Services, counts: dict[str, int]) -> None:
    """Creates sessions and waits until they are idle, without pods."""
    for cluster, count in counts.items():
        for _ in range(count):
            services.berth("create", "--cluster", cluster)
    total = sum(counts.values())
    idle: Callable[[], bool] = lambda: sum(len(of(services, cluster, "idle")) for cluster in counts) == total  # noqa: E731
    kube.wait_until("all sessions are idle", idle, timeout=300, interval=3)
    settle(services, "before the kills")


def test_kills_of_the_manager(stack: tuple[Services, ApiProxy]) -> None:
    services, proxy = stack
    wake_cold, wake_warm = points(*CREATE), points(*CLAIM, "POST pods")
    create_idle(services, {"cold": len(wake_cold), "warm": len(wake_warm)})
    idle = {cluster: iter(of(services, cluster, "idle")) for cluster in CLUSTERS}
    done = 0
    for cluster, name, kills in [
        ("cold", "create", points(*CREATE)),
        ("cold", "close", points(*CLOSE)),
        ("cold", "wake", wake_cold),
        ("warm", "create", points(*CLAIM, *REFILL)),
        ("warm", "close", points(*CLOSE)),
        ("warm", "wake", wake_warm),
    ]:
        commands = []
        active = iter(active_sessions(services, cluster, len(kills)) if name == "close" else ())
        for point in kills:
            command = {
                "create": lambda: ("create", "--cluster", cluster),
                "wake": lambda: ("warm", next(idle[cluster])),
                "close": lambda: ("close", next(active)),
            }[name]()
            commands.append((point, command))
        batch(services, proxy, f"{name}, {cluster}", commands, of_pool=cluster == "warm" and name != "close")
        done += len(kills)
        if name == "wake":
            # Room for the pods of the next batch.
            for session in of(services, cluster, "active"):
                services.berth("close", session)
            settle(services, "after the batch")
    print(f"{done} kills")
    assert done >= 36


def test_kills_at_random_moments(stack: tuple[Services, ApiProxy]) -> None:
    services, _ = stack
    pick = random.Random(1)
    for _ in range(6):
        for cluster in CLUSTERS:
            attempt(services, "create", "--cluster", cluster)
        for session in of(services, "warm", "active")[:1] + of(services, "cold", "active")[:1]:
            attempt(services, "close", session)
        time.sleep(pick.uniform(0.05, 2.5))
        services.kill("session-manager")
        services.start_service("session-manager", "manager_admin")
    print(f"6 random kills: all in order after {settle(services, 'random kills'):.1f} s")


def restart_api_server() -> None:
    """Kills the API server of this test's cluster; its node starts it again."""
    # The brackets keep the shell itself from being found.
    program = "components kube-[a]piserver "
    script = f"for one in /proc/[0-9]*; do tr '\\0' ' ' <$one/cmdline 2>/dev/null | grep -q '{program}' && echo ${{one#/proc/}}; done; true"
    pids = kube.run(str(CLUSTER), "exec", "bash", "-c", script).split()
    assert len(pids) == 1, pids
    kube.run(str(CLUSTER), "exec", "kill", "-KILL", *pids)


def test_restarts_of_the_api_server(stack: tuple[Services, ApiProxy]) -> None:
    services, _ = stack
    for round_ in range(3):
        for cluster in CLUSTERS:
            attempt(services, "create", "--cluster", cluster)
        for session in of(services, "warm", "active")[:1] + of(services, "cold", "active")[:1]:
            attempt(services, "close", session)
        time.sleep(0.2 * round_)
        restart_api_server()
        kube.wait_until("the API server answers", lambda: subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, check=False).returncode == 0)
        print(f"restart {round_ + 1} of the API server: all in order after {settle(services, 'API server'):.1f} s")
    for session in sessions(services):
        services.berth("close", session)
    kube.wait_until("no pod of a session", lambda: all("berth/session" not in pod["metadata"]["labels"] for pod in live_pods()), timeout=LIMIT)
