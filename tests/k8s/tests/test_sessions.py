"""Sessions as pods: Berth's services run on this machine, sessions in the cluster.

The pods of a session are found by their label; PySpark connects through spark-proxy.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube
import pytest

SPACE = "sessions"
ANCHOR = "berth-anchor"
REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAMS = Path(os.environ["BERTH_PROGRAMS"])
CREATES = 6
COMMAND_TIMEOUT = 330.0
"""Of one `berth` command, in seconds; more than the longest deadline of a session here."""
RELEASE_TIMEOUT = 240.0
"""An unused session is idle after a minute; its pod goes when the proxies have been silent for a while."""

SUM = "499500"
QUERY = """
import faulthandler, sys, time
faulthandler.dump_traceback_later(90, exit=True)
from pyspark.sql import SparkSession
begun = time.monotonic()
spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate()
result = spark.range(1000).selectExpr("sum(id)").collect()[0][0]
print(result, time.monotonic() - begun)
spark.stop()
"""
"""Prints its result, and the seconds from the first call to the result."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (OSError, urllib.error.HTTPError):
        return False


def toml(value: Any) -> str:
    """A value of TOML in one line."""
    match value:
        case dict():
            return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return json.dumps(value)


def definition(image: str, **replaced: Any) -> str:
    """The section `kubernetes` of a cluster, as TOML; `None` removes a key."""
    fields = {"namespace": SPACE, "image": image, "cpu": "500m", "memory": "1Gi", **replaced}
    return toml({key: value for key, value in fields.items() if value is not None})


def profile(cpu: str, **more: Any) -> dict[str, Any]:
    return {"cpu": cpu, "memory": "1Gi", **more}


SIZES = {"small": profile("300m", default=True), "large": profile("700m", ephemeral_storage="2Gi")}
AGENT = {
    "name": "agent",
    "image": "berth.test/sail:test",
    "imagePullPolicy": "Never",
    "command": ["/usr/bin/python3", "-c", "import time; time.sleep(3600)"],
    "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
}
TEMPLATE = {
    "metadata": {"labels": {"team": "data"}},
    "spec": {
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "containers": [
            {"name": "engine", "env": [{"name": "EXAMPLE", "value": "1"}], "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
            AGENT,
        ],
    },
}
NO_SECRET = {"spec": {"containers": [{"name": "engine", "env": [
    {"name": "MISSING", "valueFrom": {"secretKeyRef": {"name": "does-not-exist", "key": "x"}}},
]}]}}  # fmt: skip


CLUSTERS = {
    "sail": ("sail", definition("berth.test/sail:test")),
    "sail-1": ("sail", definition("berth.test/sail:test", cpu="1")),
    "spark": ("spark", definition("berth.test/spark:test", cpu="1", memory="2Gi", driver_memory="1g")),
    "no-image": ("sail", definition("berth.test/nothing:test")),
    "sizes": ("sail", definition("berth.test/sail:test", cpu=None, memory=None, profiles=SIZES)),
    "templated": ("sail", definition("berth.test/sail:test", pod_template=TEMPLATE)),
    "no-secret": ("sail", definition("berth.test/sail:test", pod_template=NO_SECRET)),
    "no-room": ("sail", definition("berth.test/sail:test", cpu="500")),
    "no-program": ("sail", definition("berth.test/sail:test", command=["/nowhere/sail"])),
    "crash": ("sail", definition("berth.test/sail:test", command=["/usr/bin/python3", "-c", "raise SystemExit('no sail today')"])),
    "too-small": ("sail", definition("berth.test/sail:test", memory="24Mi")),
}


class Services:
    """Redis and the three services on loopback, with one account. `clusters` are names with engine and
    definition, `settings` is more text of session-manager's configuration, `compute` of its section compute.kubernetes."""

    def __init__(
        self,
        folder: Path,
        *,
        clusters: dict[str, tuple[str, str]] = CLUSTERS,
        settings: str = "",
        kubeconfig: str | None = None,
        space: str = SPACE,
        anchor: str = ANCHOR,
        isolated: bool = False,
        deadline: str = "30s",
        compute: str = "",
    ) -> None:
        self.folder = folder
        self._clusters, self._settings = clusters, settings
        self._kubeconfig = kubeconfig or os.environ["KUBECONFIG"]
        self._deadline = deadline
        self._compute = f'namespaces = ["{space}"]\nanchor = "{anchor}"\nisolated = {json.dumps(isolated)}\n{compute}'
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        names = ("redis", "manager", "internal", "issuer", "jwks", "proxy", "manager_admin", "issuer_admin", "proxy_admin")
        self.ports = {name: free_port() for name in names}
        self._run("keys", "signing", str(folder / "signing.pem"))
        self._account = json.loads(self._run("--output", "json", "keys", "service-account"))
        self.key: str = self._account["key"]
        self._configure()
        self._start("redis", "redis-server", "--port", str(self.ports["redis"]), "--bind", "127.0.0.1", "--appendonly", "yes",
                    "--save", "", "--dir", str(folder))  # fmt: skip
        self.start_service("token-issuer", "issuer_admin")
        self.start_service("session-manager", "manager_admin")
        self.start_service("spark-proxy", "proxy_admin")

    def _configure(self) -> None:
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        keys = f'tokens.keys.location = "http://{at["jwks"]}/.well-known/jwks.json"\n'
        clusters = "".join(
            f'[[clusters]]\nname = "{name}"\nengine = "{engine}"\nidle_timeout = "{"1min" if engine == "sail" else "6min"}"\n'
            f'provisioning_deadline = "{self._deadline}"\nkubernetes = {pods}\n'
            for name, (engine, pods) in self._clusters.items()
        )
        self._write("session-manager", f"""
listen.public.address = "{at["manager"]}"
listen.internal.address = "{at["internal"]}"
admin.address = "{at["manager_admin"]}"
store.url = "redis://{at["redis"]}"
{keys}
[compute.kubernetes]
{self._compute}
kubeconfig = "{self._kubeconfig}"
[[service_accounts]]
name = "tester"
org = "acme"
roles = ["member", "org-admin", "platform-admin"]
key_sha256 = "{self._account["key_sha256"]}"
{clusters}{self._settings}""")  # fmt: skip
        self._write("token-issuer", f"""
listen.grpc.address = "{at["issuer"]}"
listen.jwks.address = "{at["jwks"]}"
admin.address = "{at["issuer_admin"]}"
keys.signing = "{self.folder}/signing.pem"
public = {{ endpoint = "localhost:{self.ports["proxy"]}", tls = false }}
manager.uri = "http://{at["internal"]}"
""")  # fmt: skip
        self._write("spark-proxy", f"""
listen.address = "{at["proxy"]}"
listen.tls.mode = "off"
admin.address = "{at["proxy_admin"]}"
manager.uri = "http://{at["internal"]}"
{keys}""")  # fmt: skip

    def _write(self, service: str, text: str) -> None:
        (self.folder / f"{service}.toml").write_text(text)

    def _run(self, *args: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run([PROGRAMS / "berth", *args], capture_output=True, text=True, timeout=COMMAND_TIMEOUT, env=env, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def start_service(self, name: str, admin: str) -> None:
        self._start(name, str(PROGRAMS / name), "--config", str(self.folder / f"{name}.toml"))
        url = f"http://127.0.0.1:{self.ports[admin]}/readyz"
        kube.wait_until(f"{name} is ready", lambda: answers(url), timeout=30, interval=0.1)

    def kill(self, name: str) -> None:
        """Ends a service without a chance to clean up."""
        self._running[name].send_signal(signal.SIGKILL)
        self._running.pop(name).wait(timeout=10)

    def stop(self) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()

    def berth(self, *args: str) -> Any:
        """Runs the `berth` command; returns its JSON."""
        env = {
            **os.environ,
            "BERTH_KEY": self._account["key"],
            "BERTH_MANAGER": f"http://127.0.0.1:{self.ports['manager']}",
            "BERTH_ISSUER": f"http://127.0.0.1:{self.ports['issuer']}",
        }
        return json.loads(self._run("--output", "json", *args, env=env))

    def wait_status(self, session: str, *wanted: str, timeout: float = 60) -> dict[str, Any]:
        def reached() -> Any:
            shown = self.berth("show", session)
            return shown if shown["status"] in wanted else None

        return kube.wait_until(f"{session} is {wanted}", reached, timeout=timeout)

    def query(self, session: str) -> str:
        """The result of a query through spark-proxy."""
        return self.timed_query(session)[0]

    def timed_query(self, session: str) -> tuple[str, float]:
        """The same, and the seconds from the client's first call to the result."""
        url = self.berth("token", session)["connection_url"]
        done = subprocess.run([sys.executable, "-c", QUERY, url], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        result, seconds = done.stdout.split()
        return result, float(seconds)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    kube.apply(kube.namespace(SPACE), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ANCHOR, "namespace": SPACE}})
    running = Services(tmp_path_factory.mktemp("services"))
    yield running
    running.stop()
    kube.kubectl("delete", "namespace", "--timeout=100s", SPACE)


def pods(session: str, kind: str = "pods") -> list[dict[str, Any]]:
    return kube.get("-n", SPACE, kind, "-l", f"berth/session={session}")["items"]


def wait_gone(session: str, timeout: float = 30) -> None:
    kube.wait_until(f"pods of {session} are gone", lambda: not pods(session), timeout=timeout)
    kube.wait_until(f"Secrets of {session} are gone", lambda: not pods(session, "secrets"), timeout=timeout)


def shown(seconds: list[float]) -> str:
    return f"p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s, n = {len(seconds)}"


def api_writes() -> Counter[str]:
    """How many requests have written objects, such as `POST pods 201`; without subresources."""
    found: Counter[str] = Counter()
    for line in kube.kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            is_write = labels["verb"] not in ("GET", "LIST", "WATCH") and not labels["subresource"]
            if is_write and labels["resource"] in ("pods", "secrets"):
                key = f"{labels['verb']} {labels['resource']} {labels['code']}"
                found[key] += int(float(line.rsplit(" ", 1)[1]))
    return found


def life(services: Services, cluster: str) -> None:
    session = services.berth("create", "--cluster", cluster, "--wait")["id"]
    assert [pod["metadata"]["name"] for pod in pods(session)] == [f"{session}-g1"]
    assert services.query(session) == SUM
    services.berth("close", session)
    wait_gone(session)


def test_sessions_are_pods_that_go_when_idle_and_return_on_a_query(services: Services) -> None:
    sessions = [services.berth("create", "--cluster", "sail", "--wait")["id"] for _ in range(3)]
    for session in sessions:
        (pod,) = pods(session)
        assert pod["metadata"]["name"] == f"{session}-g1"
        assert pod["metadata"]["ownerReferences"][0]["name"] == ANCHOR
        assert services.query(session) == SUM
    for session in sessions:
        wait_gone(session, RELEASE_TIMEOUT)
        assert services.berth("show", session)["status"] == "idle"
    times = []
    for session in sessions:
        result, seconds = services.timed_query(session)
        assert result == SUM
        assert [pod["metadata"]["name"] for pod in pods(session)] == [f"{session}-g2"]
        times.append(seconds)
        services.berth("close", session)
        wait_gone(session)
    print(f"first query after idle: {shown(times)}")
    assert max(times) < 15


def test_a_session_costs_two_writes_and_little_time(services: Services) -> None:
    before, times, ends = api_writes(), [], []
    for _ in range(CREATES):
        begun = time.monotonic()
        session = services.berth("create", "--cluster", "sail-1", "--wait")["id"]
        times.append(time.monotonic() - begun)
        begun = time.monotonic()
        services.berth("close", session)
        wait_gone(session)
        ends.append(time.monotonic() - begun)
    print(f"create to active: {shown(times)}; close to pod gone: {shown(ends)}")
    assert max(times) < 15
    # The engine ends on SIGTERM, and not by SIGKILL after 5 s.
    assert statistics.median(ends) < 4
    made = api_writes() - before
    # A close may meet the end of the pod.
    made.pop("DELETE pods 404", None)
    # The kubelet deletes a pod too, when its containers have ended, and session-manager repeats a delete that its watch
    # has not shown yet.
    deletes = made.pop("DELETE pods 200")
    assert 2 * CREATES <= deletes <= 3 * CREATES, deletes
    assert made == {"POST pods 201": CREATES}


def test_a_pod_that_is_deleted_is_replaced(services: Services) -> None:
    session = services.berth("create", "--cluster", "sail", "--wait")["id"]
    kube.kubectl("-n", SPACE, "delete", "pod", f"{session}-g1", "--now")
    replaced = kube.wait_until("the next generation", lambda: [pod for pod in pods(session) if pod["metadata"]["name"].endswith("-g2")])
    assert len(replaced) == 1
    services.wait_status(session, "active")
    assert services.query(session) == SUM
    services.berth("close", session)
    wait_gone(session)


def test_sessions_outlive_their_manager(services: Services) -> None:
    session = services.berth("create", "--cluster", "sail", "--wait")["id"]
    before = pods(session)[0]["metadata"]["uid"]
    services.kill("session-manager")
    services.start_service("session-manager", "manager_admin")
    assert services.query(session) == SUM
    # A create that is under way when its manager dies is finished by the next.
    unfinished = services.berth("create", "--cluster", "sail")["id"]
    services.kill("session-manager")
    services.start_service("session-manager", "manager_admin")
    services.wait_status(unfinished, "active")
    assert [pod["metadata"]["uid"] for pod in pods(session)] == [before]
    for each in (session, unfinished):
        services.berth("close", each)
    # As is a close.
    services.kill("session-manager")
    services.start_service("session-manager", "manager_admin")
    for each in (session, unfinished):
        wait_gone(each, timeout=60)


@pytest.mark.parametrize(
    ("cluster", "words", "limit"),
    [
        ("no-image", "its image cannot be pulled", 45),
        ("no-room", "no node has room: insufficient cpu", 45),
        ("no-program", "sail could not be started in its image", 15),
        ("crash", "sail exited with code 1", 15),
        ("too-small", "sail ran out of memory: the limit of its pod is 24Mi", 15),
    ],
)
def test_a_failure_is_explained(services: Services, cluster: str, words: str, limit: float) -> None:
    session = services.berth("create", "--cluster", cluster)["id"]
    failed = services.wait_status(session, "failed", timeout=limit)
    assert words in failed["status_message"], failed
    if cluster == "crash":
        assert "no sail today" in json.dumps(failed), failed
    wait_gone(session)


@pytest.mark.parametrize(
    ("cluster", "words", "detail"),
    [
        ("no-room", "no node has room: insufficient cpu", "Insufficient cpu"),
        ("no-secret", "a Secret or ConfigMap of its pod does not exist", "not found"),
    ],
)
def test_a_waiting_cause_is_visible_at_once(services: Services, cluster: str, words: str, detail: str) -> None:
    session = services.berth("create", "--cluster", cluster)["id"]

    def shown_by_kubernetes() -> bool:
        return any(detail in json.dumps(pod.get("status", {})) for pod in pods(session))

    kube.wait_until("the API server shows it", shown_by_kubernetes, interval=0.05)
    begun = time.monotonic()
    shown = kube.wait_until("Berth shows it", lambda: (it := services.berth("show", session))["status_message"] == words and it, interval=0.05)
    print(f"{cluster}: visible after {time.monotonic() - begun:.2f} s")
    assert time.monotonic() - begun < 2
    assert shown["reason"] == "COMPUTE_WAITING", shown
    assert detail in shown["status_detail"], shown
    version = shown["version"]
    time.sleep(3)
    assert services.berth("show", session)["version"] == version, "written without a change"
    services.berth("close", session)
    wait_gone(session)


def test_a_profile_sets_the_size(services: Services) -> None:
    session = services.berth("create", "--cluster", "sizes", "--profile", "large", "--wait")
    assert session["profile"] == "large"
    engine = next(container for container in pods(session["id"])[0]["spec"]["containers"] if container["name"] == "engine")
    assert engine["resources"]["limits"] == {"cpu": "700m", "memory": "1Gi", "ephemeral-storage": "2Gi"}
    services.berth("close", session["id"])
    wait_gone(session["id"])
    with pytest.raises(AssertionError, match="must be one of the cluster's profiles: large, small"):
        services.berth("create", "--cluster", "sizes", "--profile", "huge")


def test_a_template_is_merged_and_a_pod_still_restricted(services: Services) -> None:
    session = services.berth("create", "--cluster", "templated", "--wait")["id"]
    pod = pods(session)[0]
    assert pod["metadata"]["labels"]["team"] == "data"
    names = [container["name"] for container in pod["spec"]["containers"]]
    assert names == ["engine", "agent"], names
    agent = pod["spec"]["containers"][1]
    assert agent["securityContext"]["allowPrivilegeEscalation"] is False
    services.berth("close", session)
    wait_gone(session)


def cluster_file(folder: Path, name: str, **replaced: Any) -> str:
    pods_of = {"namespace": SPACE, "image": "berth.test/sail:test", "cpu": "500m", "memory": "1Gi", **replaced}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"name": name, "engine": "sail", "kubernetes": {key: value for key, value in pods_of.items() if value}}))
    return str(file)


def test_a_definition_is_tried_at_the_api_server(services: Services, tmp_path: Path) -> None:
    limits = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "small", "namespace": SPACE},
        "spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]},
    }
    kube.apply(limits)
    try:
        profiles = {"small": {"cpu": "1", "memory": "1Gi", "default": True}, "large": {"cpu": "4", "memory": "1Gi"}}
        file = cluster_file(tmp_path, "tried", cpu="", memory="", profiles=profiles)
        with pytest.raises(AssertionError, match="profile large: .*maximum cpu usage per Container is 2"):
            services.berth("clusters", "create", file)
        with pytest.raises(AssertionError):
            services.berth("clusters", "show", "tried")
        profiles["large"]["cpu"] = "2"
        services.berth("clusters", "create", cluster_file(tmp_path, "tried", cpu="", memory="", profiles=profiles))
        before = services.berth("clusters", "show", "tried")
        template = {"spec": {"priorityClassName": "does-not-exist"}}
        with pytest.raises(AssertionError, match="no PriorityClass with name does-not-exist"):
            services.berth("clusters", "update", cluster_file(tmp_path, "tried", pod_template=template))
        with pytest.raises(AssertionError, match=r"pod_template\.spec\.hostNetwork"):
            services.berth("clusters", "update", cluster_file(tmp_path, "tried", pod_template={"spec": {"hostNetwork": True}}))
        assert services.berth("clusters", "show", "tried")["version"] == before["version"]
        assert not [pod for pod in kube.get("-n", SPACE, "pods")["items"] if "-g0" in pod["metadata"]["name"]]
    finally:
        kube.kubectl("-n", SPACE, "delete", "limitrange", "small")
        services.berth("clusters", "delete", "tried")


def test_a_quota_is_explained(services: Services) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": SPACE},
        "spec": {"hard": {"limits.cpu": "100m"}},
    }
    kube.apply(quota)
    try:
        kube.wait_until("the quota counts", lambda: kube.get("-n", SPACE, "resourcequota", "small").get("status", {}).get("used"))
        before = api_writes()
        session = services.berth("create", "--cluster", "sail")["id"]
        failed = services.wait_status(session, "failed", timeout=45)
        creates = (api_writes() - before)["POST pods 403"]
        print(f"creates within the deadline of 30 s: {creates}")
        assert 2 <= creates <= 8
        assert "quota small of its namespace is used up: needs 500m CPU" in failed["status_message"], failed
    finally:
        kube.kubectl("-n", SPACE, "delete", "resourcequota", "small")


@pytest.mark.skipif(not os.environ.get("SPARK"), reason="the image of Apache Spark is loaded with SPARK=1 only")
def test_spark(services: Services) -> None:
    life(services, "spark")


def test_the_anchor_takes_the_pods_with_it(services: Services) -> None:
    session = services.berth("create", "--cluster", "sail", "--wait")["id"]
    kube.kubectl("-n", SPACE, "delete", "configmap", ANCHOR)
    kube.wait_until("the pod is gone", lambda: f"{session}-g1" not in [pod["metadata"]["name"] for pod in pods(session)], timeout=60)
    services.berth("close", session)
    wait_gone(session)
