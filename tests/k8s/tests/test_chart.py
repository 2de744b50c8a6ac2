"""The chart on a real cluster, in the order of an installation's life."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import berth
import kube
import pytest

LOAD_SECONDS = 30


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[berth.Berth]:
    if not (berth.CHART / "Chart.yaml").exists():
        pytest.fail(f"there is no chart in {berth.CHART}")
    yield berth.Berth(tmp_path_factory.mktemp("berth"))
    berth.remove_namespaces()


@pytest.fixture(scope="module")
def client(installation: berth.Berth) -> kube.PythonPod:
    return installation.client("client")


@pytest.fixture(scope="module")
def url(installation: berth.Berth) -> str:
    """Connection string of a session on the shared cluster."""
    session = installation.command("create", "--cluster", "shared", "--wait")["id"]
    return installation.command("token", session)["connection_url"]


@pytest.fixture(scope="module")
def pod_session(installation: berth.Berth) -> str:
    """Id of a session on the cluster of pods."""
    return installation.command("create", "--cluster", "pods", "--wait")["id"]


def pod_of(session: str) -> dict[str, Any]:
    """The only pod of a session."""
    (pod,) = kube.get("-n", berth.SESSIONS, "pods", "-l", f"berth/session={session}")["items"]
    return pod


def pods_of_console() -> list[dict[str, Any]]:
    """The pods of the console."""
    label = f"app.kubernetes.io/instance={berth.RELEASE},app.kubernetes.io/component=console"
    return kube.get("-n", berth.SPACE, "pods", "-l", label)["items"]


def pods_of_services() -> dict[str, Any]:
    """The pods of the three services by name."""
    items = kube.get("-n", berth.SPACE, "pods", "-l", f"app.kubernetes.io/instance={berth.RELEASE}")["items"]
    component = "app.kubernetes.io/component"
    return {p["metadata"]["name"]: p for p in items if p["metadata"]["labels"][component] in berth.SERVICES.values()}


def test_every_service_is_ready_at_once(installation: berth.Berth) -> None:
    pods = pods_of_services()
    assert len(pods) == 3
    for name, pod in pods.items():
        for container in pod["status"]["containerStatuses"]:
            assert container["ready"] and container["restartCount"] == 0, (name, container)


def test_a_query_passes_with_tls(client: kube.PythonPod, url: str) -> None:
    assert f"{berth.host('spark-proxy')}:8085" in url and "use_ssl=true" in url
    assert client.python(berth.QUERY, url, "SELECT sum(id) FROM range(1000)").strip() == "499500"


def test_a_static_program_trusts_the_authorities_of_the_system(installation: berth.Berth) -> None:
    names = [cluster["name"] for cluster in installation.command("clusters", system_authorities=True)]
    assert sorted(names) == ["pods", "shared"]


def test_only_client_ports_are_reachable(installation: berth.Berth, client: kube.PythonPod) -> None:
    for service, port in ("session-manager", 8081), ("token-issuer", 8083), ("spark-proxy", 8085), ("console", 8080):
        assert client.connects(berth.host(service), port), service
    for service, port in ("session-manager-internal", 8082), ("token-issuer-internal", 8084), ("redis", 6379):
        assert not client.connects(berth.host(service), port), service


SIGN_IN = (
    berth.REQUESTS
    + """
origin, key = sys.argv[1:]
answer = ask(f"{origin}/auth/key", {"key": key}, x_berth_request="1", origin=origin)
cookie = answer.headers["set-cookie"].split(";")[0]
assert answer.status == 204 and cookie.startswith("__Host-"), (answer.status, cookie[:20])
seen = [json.load(ask(f"{origin}/auth/session", cookie=cookie)) for _ in range(20)]
assert all(one["signed_in"] for one in seen), seen
names = [json.load(ask(f"{origin}/api/v1/clusters", cookie=cookie))["clusters"] for _ in range(5)]
page = ask(f"{origin}/").read().decode()
print(json.dumps({"clusters": sorted({cluster["name"] for one in names for cluster in one}), "page": page}))
"""
)
"""Signs in as a browser does, and reads with the cookie over new connections, which both replicas get."""


def test_both_replicas_of_the_console_know_a_browser(installation: berth.Berth, client: kube.PythonPod) -> None:
    pods = pods_of_console()
    assert len(pods) == 2
    seen = json.loads(client.python(SIGN_IN, berth.CONSOLE, installation.key))
    assert seen["clusters"] == ["pods", "shared"]
    assert "<script" in seen["page"], "the image has no pages"
    logs = [kube.kubectl("-n", berth.SPACE, "logs", pod["metadata"]["name"]) for pod in pods]
    assert installation.key not in "".join(logs)


def test_the_console_reaches_the_apis_only(installation: berth.Berth) -> None:
    # Policies select by these; with the hash too, the pod would belong to the ReplicaSet, which deletes it.
    labels = {name: value for name, value in pods_of_console()[0]["metadata"]["labels"].items() if name != "pod-template-hash"}
    twin = kube.PythonPod("console-twin", berth.SPACE, labels=labels)
    try:
        for service, port in ("session-manager", 8081), ("token-issuer", 8083):
            assert twin.connects(berth.host(service), port), service
        for service, port in ("session-manager-internal", 8082), ("token-issuer-internal", 8084), ("spark-proxy", 8085), ("redis", 6379):
            assert not twin.connects(berth.host(service), port), service
        assert not twin.connects("kubernetes.default.svc", 443)
    finally:
        kube.kubectl("-n", berth.SPACE, "delete", "pod", "console-twin", "--now")


def test_a_session_is_a_pod_that_only_berth_reaches(installation: berth.Berth, client: kube.PythonPod, pod_session: str) -> None:
    pod = pod_of(pod_session)
    assert pod["metadata"]["name"] == f"{pod_session}-g1"
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("ConfigMap", f"{berth.RELEASE}-sessions")
    url = installation.command("token", pod_session)["connection_url"]
    assert "use_ssl=true" in url
    assert client.python(berth.QUERY, url, "SELECT sum(id) FROM range(1000)").strip() == "499500"
    assert not client.connects(pod["status"]["podIP"], 15002)


def test_an_upgrade_under_load_fails_no_call(installation: berth.Berth, client: kube.PythonPod, url: str) -> None:
    before = pods_of_services()
    load = client.start(berth.LOAD, url, str(LOAD_SECONDS))
    assert load.stdout is not None and load.stdout.readline().strip() == "started"
    started = time.monotonic()
    values = {key: {**installation.values.get(key, {}), "podAnnotations": {"test/upgrade": "1"}} for key in berth.SERVICES}
    installation.upgrade(**values)
    assert time.monotonic() - started < LOAD_SECONDS, "the load ended before the upgrade"
    output, errors = load.communicate(timeout=180)
    result = json.loads(output)
    print(result)
    assert load.returncode == 0, errors
    assert result["failures"] == [] and result["calls"] > 50
    kube.wait_until("every pod is replaced", lambda: not set(before) & set(pods_of_services()), timeout=240)


def test_a_pod_outlives_the_upgrade(installation: berth.Berth, client: kube.PythonPod, pod_session: str) -> None:
    pod = pod_of(pod_session)
    assert pod["metadata"]["name"] == f"{pod_session}-g1" and "deletionTimestamp" not in pod["metadata"]
    url = installation.command("token", pod_session)["connection_url"]
    assert client.python(berth.QUERY, url, "SELECT sum(id) FROM range(1000)").strip() == "499500"
    assert pod_of(pod_session)["metadata"]["uid"] == pod["metadata"]["uid"]


def test_uninstall_leaves_nothing(installation: berth.Berth) -> None:
    installation.uninstall()
