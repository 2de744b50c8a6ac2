"""`make bench-k8s-claims`: many sessions at once on a full warm pool of the real cluster.

Two cores cannot run hundreds of real engines. So the pods have an engine that answers the first call and nothing else
(cluster/engine); kubelet, API server, network, session-manager and Redis are real. One client sends all creates on one
connection. Times come from session-manager's log. Results are in target/bench/k8s-claims.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import bench_sessions as bench
import grpc
import kube
import pytest
from test_sessions import ANCHOR, REPOSITORY, Services, definition

COUNTS = [int(text) for text in os.environ.get("BENCH_CLAIMS", "50,100,200").split(",")]
POOL = sum(COUNTS)
"""Every claim gets a pod of its own: to fill the pool takes most of the time."""
CREATE = "/berth.v1.SessionService/CreateSession"
SETTINGS = """
[limits]
calls_per_second_per_principal = 0
calls_at_once_per_principal = 0
calls_at_once_per_address = 0
[[orgs]]
name = "acme"
limits = { live_sessions_per_owner = 10000, live_sessions = 10000, creates_per_minute = 10000 }
"""
CLUSTERS = {"many": ("sail", definition(image=bench.INSTANT_ENGINE, cpu="4m", memory="32Mi", warm_pods=POOL))}


# The pool is not refilled, because no pod more is allowed.
COMPUTE = f"max_pods = {POOL}\nmax_starting = 20"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    kube.apply(kube.namespace(bench.SPACE), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ANCHOR, "namespace": bench.SPACE}})
    running = Services(tmp_path_factory.mktemp("claims"), clusters=CLUSTERS, settings=SETTINGS, compute=COMPUTE)
    yield running
    running.stop()
    kube.kubectl("delete", "namespace", "--timeout=280s", bench.SPACE, timeout=300)
    folder = REPOSITORY / "target" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"machine": platform.platform(), "cores": os.cpu_count(), "pool": POOL}
    (folder / "k8s-claims.json").write_text(json.dumps({**facts, **bench.FIGURES}, indent=1))


def wait_pool(services: Services, size: int) -> None:
    def full() -> bool:
        (pool,) = services.berth("clusters", "show", "many")["provider"]["kubernetes"]["warm_pools"]
        return pool["available"] >= size

    kube.wait_until(f"the pool has {size} pods", full, timeout=1200, interval=2)


def text(field: int, value: str) -> bytes:
    """A field of Protocol Buffers; at most 127 bytes."""
    return bytes([field << 3 | 2, len(value)]) + value.encode()


class Client:
    """Creates sessions, all at once."""

    def __init__(self, services: Services) -> None:
        channel = grpc.insecure_channel(f"127.0.0.1:{services.ports['manager']}")
        grpc.channel_ready_future(channel).result(timeout=10)
        self._call = channel.unary_unary(CREATE, request_serializer=None, response_deserializer=None)
        self._caller = (("authorization", f"Bearer {services.key}"),)

    def create(self, count: int) -> list[float]:
        """How long each call took, in seconds."""
        begun, took, done = time.monotonic(), [], threading.Semaphore(0)

        def ended(_: Any) -> None:
            took.append(time.monotonic() - begun)
            done.release()

        calls = [self._call.future(text(2, "many"), metadata=self._caller, timeout=60) for _ in range(count)]
        for call in calls:
            call.add_done_callback(ended)
        for call in calls:
            call.result()
            done.acquire()
        return took


def cpu_seconds(pattern: str) -> float:
    """CPU time of the processes whose command line contains a text."""
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()
    total = 0
    for pid in found:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


PARTS = {"session-manager": "session-manager --config", "API server": "components kube-apiserver", "etcd": "components etcd", "kubelet": "components kubelet"}


@pytest.fixture(scope="module")
def client(services: Services) -> Client:
    begun = time.monotonic()
    wait_pool(services, POOL)
    print(f"{POOL} pods started and answered in {time.monotonic() - begun:.0f} s")
    # The kubelet is busy for a while after it started the pods.
    time.sleep(10)
    return Client(services)


@pytest.mark.parametrize("count", COUNTS)
def test_claims_at_once(services: Services, count: int, client: Client) -> None:
    known = {line["session"] for line in bench.log(services) if line["message"] == "session created"}
    before = {name: cpu_seconds(pattern) for name, pattern in PARTS.items()}
    took = client.create(count)

    def all_active() -> list[dict[str, Any]] | None:
        lines = bench.log(services)
        active = set(bench.active_at(lines)) - known
        return lines if len(active) == count else None

    lines = kube.wait_until("all are active", all_active, timeout=60, interval=1)
    spent = {name: round(cpu_seconds(pattern) - before[name], 2) for name, pattern in PARTS.items()}
    created = [line["session"] for line in lines if line["message"] == "session created" and line["session"] not in known]
    assert len(created) == count
    found = bench.claims(lines, created)
    bench.record(f"create call, {count} at once", took)
    bench.record(f"create to active, {count} at once", bench.to_active(lines, created))
    bench.record(f"claim, {count} at once", found)
    print(f"hits: {len(found)} of {count}; CPU seconds: {spent}")
    assert len(found) == count, "every session got a pod of the pool"
    pods = kube.get("-n", bench.SPACE, "pods", "-l", "berth/session")["items"]
    served = [pod["metadata"]["labels"]["berth/session"] for pod in pods]
    assert sorted(served) == sorted(known | set(created)), "one pod for each session"
