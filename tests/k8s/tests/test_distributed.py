"""Engines with workers: Berth's services run on this machine, drivers and workers in the cluster.

The namespace is made by the chart, so that rights, admission policies and network policies are those of an installation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube
import pytest
from test_sessions import SUM, Services

CHART = Path(os.environ.get("BERTH_CHART", Path(__file__).resolve().parents[3] / "helm" / "berth"))
SPACE = "distributed"
ANCHOR = "berth-sessions"
HOST = "10.250.0.1/32"
"""This machine, where the services run."""
SWEEP_TIMEOUT = 60.0

SESSION = """
import faulthandler, sys
faulthandler.dump_traceback_later(240, exit=True)
from pyspark.sql import SparkSession
spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate()
print(spark.range(0, 1000, 1, 4).selectExpr("sum(id)").collect()[0][0], flush=True)
sys.stdin.readline()
"""
"""Prints its result and keeps the Spark session, whose workers would end with it, until a line comes."""


def driver(engine: str, size: str) -> dict[str, Any]:
    """An entry of the chart's distributedDrivers."""
    return {"cluster": engine, "namespace": SPACE, "engine": engine, "serviceAccount": f"{engine}-driver",
            "images": [f"berth.test/{engine}:test"], "maxCpu": "1", "maxMemory": size}  # fmt: skip


def api_server() -> list[dict[str, Any]]:
    """Where pods reach the API server."""
    service = kube.get("-n", "default", "service", "kubernetes")["spec"]
    (subset,) = kube.get("-n", "default", "endpoints", "kubernetes")["subsets"]
    return [
        {"cidr": f"{service['clusterIP']}/32", "ports": [443]},
        *({"cidr": f"{one['ip']}/32", "ports": [subset["ports"][0]["port"]]} for one in subset["addresses"]),
    ]


def values() -> dict[str, Any]:
    return {
        "signingKeys": {"existingSecret": "keys"},
        "tls": {"public": {"enabled": False}, "internal": {"mode": "plaintext"}},
        "redis": {"url": "redis://redis.data.svc:6379"},
        "sessionManager": {
            "kubernetes": {
                "enabled": True,
                "namespaces": [SPACE],
                "createNamespaces": True,
                "networkPolicy": {"apiServer": api_server()},
                "distributedDrivers": [driver("sail", "512Mi"), driver("spark", "1Gi")],
            }
        },
    }


CLUSTERS = {
    "sail": ("sail", f"""{{ namespace = "{SPACE}", image = "berth.test/sail:test", cpu = "250m", memory = "1Gi",
        service_account = "sail-driver",
        workers = {{ min = 1, max = 2, cpu = "250m", memory = "512Mi", idle_seconds = 120 }} }}"""),
    "spark": ("spark", f"""{{ namespace = "{SPACE}", image = "berth.test/spark:test", cpu = "1", memory = "1536Mi",
        driver_memory = "768m", python = "/usr/bin/python3", service_account = "spark-driver",
        workers = {{ min = 1, max = 1, cpu = "500m", memory = "1Gi" }} }}"""),
}  # fmt: skip


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    file = folder / "values.json"
    file.write_text(json.dumps(values()))
    templates = [f"--show-only=templates/{name}.yaml" for name in ("session-namespaces", "distributed-drivers")]
    rendered = kube.run("helm", "template", "berth", str(CHART), "--namespace", "berth", "--values", str(file), *templates)
    kube.kubectl("apply", "-f", "-", stdin=rendered)
    host = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "host", "namespace": SPACE},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": HOST}}]}]},
    }
    kube.apply(host)
    running = Services(folder, clusters=CLUSTERS, space=SPACE, anchor=ANCHOR, isolated=True, deadline="5min")
    yield running
    running.stop()
    kube.kubectl("delete", "--wait=false", "-f", "-", stdin=rendered)


def pods(session: str, role: str) -> list[dict[str, Any]]:
    return kube.get("-n", SPACE, "pods", "-l", f"berth/session={session},berth/role={role}")["items"]


def running(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [pod for pod in pods if pod["status"].get("phase") == "Running"]


class Client:
    """A PySpark program with an open Spark session."""

    def __init__(self, services: Services, session: str) -> None:
        url = services.berth("token", session)["connection_url"]
        self._program = subprocess.Popen([sys.executable, "-c", SESSION, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert self._program.stdout is not None
        self.result = self._program.stdout.readline().strip()
        if not self.result:
            _, errors = self._program.communicate(timeout=30)
            facts = kube.kubectl("-n", SPACE, "get", "pods,events", "-o", "wide")
            pytest.fail(f"no result\n{errors}\n{facts}\n{logs(session)}")

    def end(self) -> None:
        self._program.kill()
        self._program.communicate(timeout=30)


def logs(session: str) -> str:
    """The ends of the logs of all pods of a session."""
    return kube.kubectl("-n", SPACE, "logs", "-l", f"berth/session={session}", "--tail=40", "--prefix", "--all-containers", "--ignore-errors")


def check_workers(session: str) -> dict[str, Any]:
    """Checks what Berth and the policies rely on; returns one worker."""
    (of_session,) = pods(session, "driver")
    workers = kube.wait_until("a running worker", lambda: running(pods(session, "worker")))
    for worker in workers:
        metadata, spec = worker["metadata"], worker["spec"]
        assert metadata["name"].startswith(f"{session}-g1-")
        (owner,) = metadata["ownerReferences"]
        assert (owner["name"], owner["uid"]) == (f"{session}-g1", of_session["metadata"]["uid"])
        for label in ("install-id", "org", "session", "generation", "cluster"):
            assert metadata["labels"][f"berth/{label}"] == of_session["metadata"]["labels"][f"berth/{label}"], label
        assert spec["serviceAccountName"] == "berth-workers" and spec["automountServiceAccountToken"] is False
        assert all("serviceAccountToken" not in json.dumps(volume) for volume in spec["volumes"])
    return workers[0]


def close(services: Services, session: str) -> None:
    services.berth("close", session)
    for role in ("driver", "worker"):
        kube.wait_until(f"no {role}", lambda role=role: not pods(session, role), timeout=60)
    left = kube.get("-n", SPACE, "networkpolicies,secrets", "-l", f"berth/session={session}")["items"]
    kube.wait_until("nothing else", lambda: not kube.get("-n", SPACE, "networkpolicies,secrets", "-l", f"berth/session={session}")["items"])
    assert len(left) <= 2


def life(services: Services, cluster: str) -> None:
    begun = time.monotonic()
    session = services.berth("create", "--cluster", cluster, "--wait")["id"]
    active = time.monotonic() - begun
    client = Client(services, session)
    try:
        assert client.result == SUM
        print(f"{cluster}: active after {active:.1f} s, first result after {time.monotonic() - begun:.1f} s, load {os.getloadavg()[0]:.1f}")
        check_workers(session)
    finally:
        client.end()
        close(services, session)


def connects(pod: dict[str, Any], host: str, port: int) -> bool:
    """Whether a pod with Python reaches an address within three seconds."""
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
    name = pod["metadata"]["name"]
    command = ["kubectl", "-n", SPACE, "exec", name, "--", "python3", "-c", program, host, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=kube.TIMEOUT, check=False)
    refused = "ConnectionRefusedError" in done.stderr
    assert done.returncode == 0 or refused or "imeout" in done.stderr, done.stderr
    return done.returncode == 0 or refused


def test_sail_answers_with_workers_that_go_with_the_session(services: Services) -> None:
    life(services, "sail")


@pytest.mark.skipif(not os.environ.get("SPARK"), reason="the image of Apache Spark is loaded with SPARK=1 only")
def test_spark_answers_with_an_executor_that_goes_with_the_session(services: Services) -> None:
    life(services, "spark")


def test_pods_of_a_session_reach_each_other_and_no_others(services: Services) -> None:
    sessions = [services.berth("create", "--cluster", "sail", "--wait")["id"] for _ in range(2)]
    clients = [Client(services, session) for session in sessions]
    try:
        mine, theirs = (check_workers(session) for session in sessions)
        ((own_driver,), (other_driver,)) = (pods(session, "driver") for session in sessions)
        api = kube.get("-n", "default", "service", "kubernetes")["spec"]["clusterIP"]
        # Whether a port is open does not matter: a policy drops packets, and an open host refuses.
        ip = {name: pod["status"]["podIP"] for name, pod in (("mine", mine), ("theirs", theirs), ("own", own_driver), ("other", other_driver))}
        for source, target, wanted in (
            (mine, ip["own"], True), (own_driver, ip["mine"], True), (mine, ip["theirs"], False), (mine, ip["other"], False),
            (own_driver, ip["theirs"], False), (own_driver, ip["other"], False),
        ):  # fmt: skip
            assert connects(source, target, 15002) is wanted, (source["metadata"]["name"], target)
        assert connects(own_driver, api, 443) and not connects(mine, api, 443)
    finally:
        for client in clients:
            client.end()
        for session in sessions:
            close(services, session)


def test_a_worker_without_a_driver_is_deleted(services: Services) -> None:
    session = services.berth("create", "--cluster", "sail", "--wait")["id"]
    (of_session,) = pods(session, "driver")
    labels = {**of_session["metadata"]["labels"], "berth/role": "worker", "berth/generation": "9"}
    # Without an owner Kubernetes would keep it.
    orphan = kube.pod("orphan", SPACE, "berth.test/sail:test", ["-c", "import time; time.sleep(86400)"], command=["python3"], labels=labels)
    kube.apply(orphan)
    kube.wait_until("the orphan is gone", lambda: "orphan" not in kube.kubectl("-n", SPACE, "get", "pods", "-o", "name"), timeout=SWEEP_TIMEOUT)
    assert [pod["metadata"]["name"] for pod in pods(session, "driver")] == [f"{session}-g1"]
    close(services, session)
