"""Pods that are kept ready without a session, on the real cluster."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kube
import pytest
from test_sessions import ANCHOR, Services, api_writes, definition

SPACE = "sessions"
SIZE = 2
SAIL = {"image": "berth.test/sail:test", "cpu": "150m", "memory": "512Mi"}
CLUSTERS = {
    "warm": ("sail", definition(**SAIL, warm_pods=SIZE)),
    "lake": ("sail", definition(**SAIL, warm_pods=1, warm_catalogs=["acme/lake"])),
    "sized": ("sail", definition(SAIL["image"], cpu=None, memory=None, profiles={
        "small": {"cpu": "150m", "memory": "512Mi", "default": True},
        "large": {"cpu": "200m", "memory": "640Mi", "warm_pods": 1},
    })),
    "broken": ("sail", definition(**SAIL, command=["/nowhere/sail"], warm_pods=1)),
}
CATALOG = """
[[catalogs]]
name = "lake"
org = "acme"
engine = "sail"
properties = { type = "memory", initial_database = ["default"] }
"""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    kube.apply(kube.namespace(SPACE), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ANCHOR, "namespace": SPACE}})
    running = Services(tmp_path_factory.mktemp("warm"), clusters=CLUSTERS, settings=CATALOG)
    yield running
    running.stop()
    kube.kubectl("delete", "namespace", "--timeout=100s", SPACE)


def pods(selector: str) -> list[dict[str, Any]]:
    found = kube.get("-n", SPACE, "pods", "-l", selector)["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def pool(services: Services, cluster: str) -> dict[str, Any]:
    """The state of the only pool of a cluster."""
    shown = services.berth("clusters", "show", cluster)
    (found,) = shown["provider"]["kubernetes"]["warm_pools"]
    return found


def wait_full(services: Services, cluster: str, size: int = SIZE) -> None:
    kube.wait_until(f"the pool of {cluster} is full", lambda: pool(services, cluster).get("available", 0) == size, timeout=60)


def metrics(services: Services) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{services.ports['manager_admin']}/metrics", timeout=5).read().decode()
    found = re.findall(r"^(session_manager_warm_pool\S*) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def create(services: Services, cluster: str, *args: str) -> dict[str, Any]:
    return services.berth("create", "--cluster", cluster, "--wait", *args)


def close(services: Services, session: str) -> None:
    services.berth("close", session)
    kube.wait_until(f"pods of {session} are gone", lambda: not kube.get("-n", SPACE, "pods", "-l", f"berth/session={session}")["items"], timeout=60)


def test_a_session_claims_a_ready_pod_and_the_pool_is_refilled(services: Services) -> None:
    wait_full(services, "warm")
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods("berth/pool,berth/cluster=warm")}
    assert len(before) == SIZE
    session = create(services, "warm")["id"]
    (claimed,) = pods(f"berth/session={session}")
    name = claimed["metadata"]["name"]
    assert before[name] == claimed["metadata"]["uid"]
    assert "berth/pool" not in claimed["metadata"]["labels"]
    assert services.query(session) == "499500"
    wait_full(services, "warm")
    assert name not in [pod["metadata"]["name"] for pod in pods("berth/pool,berth/cluster=warm")]
    kube.wait_until("the hit is counted", lambda: metrics(services)['session_manager_warm_pool_starts_total{outcome="hit"}'] == 1, timeout=10)
    close(services, session)
    assert name not in [pod["metadata"]["name"] for pod in pods("berth/cluster=warm")], "a pod serves one session ever"


def test_a_claim_is_one_write(services: Services) -> None:
    wait_full(services, "warm")
    # The other pools make no pods meanwhile.
    wait_full(services, "lake", 1)
    kube.wait_until("the broken pool stopped", lambda: pool(services, "broken").get("stopped"), timeout=120)
    before = api_writes()
    session = create(services, "warm")["id"]
    wait_full(services, "warm")
    made = api_writes() - before
    assert (made["PATCH pods 200"], made["POST pods 201"]) == (1, 1), made
    close(services, session)
    # The kubelet deletes a pod too, and a delete may be repeated until the watch shows it.
    assert (api_writes() - before)["DELETE pods 200"] <= 4


def test_sessions_at_once_get_pods_of_their_own(services: Services) -> None:
    wait_full(services, "warm")
    with ThreadPoolExecutor(2 * SIZE) as many:
        sessions = list(many.map(lambda _: create(services, "warm")["id"], range(2 * SIZE)))
    served = [pod["metadata"]["labels"]["berth/session"] for pod in pods("berth/session,berth/cluster=warm")]
    assert sorted(served) == sorted(sessions), "one pod for each session"
    claimed = [pod for pod in pods("berth/session,berth/cluster=warm") if pod["metadata"]["name"].startswith("warm-")]
    assert len(claimed) >= SIZE
    for session in sessions:
        close(services, session)


def test_default_catalogs_have_a_pool_of_their_own(services: Services) -> None:
    wait_full(services, "lake", 1)
    assert pool(services, "lake")["catalog"] == "acme/lake"
    plain = create(services, "lake")["id"]
    assert [pod["metadata"]["name"] for pod in pods(f"berth/session={plain}")] == [f"{plain}-g1"], "other start settings start cold"
    session = create(services, "lake", "--catalog", "lake")["id"]
    assert pods(f"berth/session={session}")[0]["metadata"]["name"].startswith("warm-")
    assert services.query(session) == "499500"
    for each in (plain, session):
        close(services, each)


def test_a_profile_has_a_pool_of_its_own(services: Services) -> None:
    wait_full(services, "sized", 1)
    assert pool(services, "sized")["profile"] == "large"
    small, large = create(services, "sized")["id"], create(services, "sized", "--profile", "large")["id"]
    assert [pod["metadata"]["name"] for pod in pods(f"berth/session={small}")] == [f"{small}-g1"], "no warm pods of this size"
    (claimed,) = pods(f"berth/session={large}")
    assert claimed["metadata"]["name"].startswith("warm-")
    assert claimed["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "200m"
    assert services.query(large) == "499500"
    for each in (small, large):
        close(services, each)


def test_a_pool_that_fails_stops_with_the_reason(services: Services) -> None:
    stopped = kube.wait_until("the pool stopped", lambda: pool(services, "broken").get("stopped"), timeout=120)
    assert "sail could not be started in its image" in stopped, stopped
    kube.wait_until("it is counted", lambda: metrics(services).get('session_manager_warm_pools_stopped{cluster="broken",profile=""}') == 1, timeout=10)


def test_a_killed_manager_keeps_claimed_pods_and_the_pool(services: Services) -> None:
    wait_full(services, "warm")
    session = create(services, "warm")["id"]
    wait_full(services, "warm")
    before = sorted(pod["metadata"]["uid"] for pod in pods("berth/cluster=warm"))
    services.kill("session-manager")
    services.start_service("session-manager", "manager_admin")
    wait_full(services, "warm")
    assert services.query(session) == "499500"
    time.sleep(3)
    assert sorted(pod["metadata"]["uid"] for pod in pods("berth/cluster=warm")) == before
    close(services, session)


def test_a_changed_definition_drains_the_pool(services: Services) -> None:
    wait_full(services, "warm")
    old = {pod["metadata"]["uid"] for pod in pods("berth/pool,berth/cluster=warm")}
    config = services.folder / "session-manager.toml"
    changed = dict(SAIL, memory="600Mi")
    text = config.read_text().replace(definition(**SAIL, warm_pods=SIZE), definition(**changed, warm_pods=1))
    config.write_text(text)
    services.kill("session-manager")
    services.start_service("session-manager", "manager_admin")

    def drained() -> bool:
        left = pods("berth/pool,berth/cluster=warm")
        sizes = [pod["spec"]["containers"][0]["resources"]["limits"]["memory"] for pod in left]
        return sizes == ["600Mi"] and not old & {pod["metadata"]["uid"] for pod in left}

    kube.wait_until("old pods are deleted", drained, timeout=90)
    print(json.dumps(metrics(services)))
