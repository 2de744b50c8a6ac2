"""The cluster itself: names, services, network policies, limits. Other tests rely on them."""

from __future__ import annotations

from collections.abc import Iterator

import kube
import pytest

SPACE = "cluster-test"
SERVE = "from http.server import *; ThreadingHTTPServer(('', 8080), SimpleHTTPRequestHandler).serve_forever()"


@pytest.fixture(scope="module")
def client() -> Iterator[kube.PythonPod]:
    """A client, and a server behind a Service."""
    kube.apply(kube.namespace(SPACE))
    server = kube.pod("server", SPACE, kube.CLIENT_IMAGE, ["-c", SERVE], command=["python3"], labels={"app": "server"},
                      ports=[{"name": "http", "containerPort": 8080}])  # fmt: skip
    kube.apply(server, kube.service("server", SPACE, 8080))
    kube.wait_ready(SPACE, "server")
    yield kube.PythonPod("client", SPACE, labels={"role": "client"})
    kube.kubectl("delete", "namespace", "--wait=false", SPACE)


def lookup(client: kube.PythonPod, name: str) -> str:
    return client.python(
        "import socket, sys\n"
        "try: print(socket.gethostbyname(sys.argv[1]))\n"
        "except socket.gaierror as e: print(e.errno == socket.EAI_NONAME and 'no such name' or e)",
        name,
    ).strip()


def test_names_resolve(client: kube.PythonPod) -> None:
    address = kube.get("-n", SPACE, "service", "server")["spec"]["clusterIP"]
    assert lookup(client, "server") == address
    assert lookup(client, f"server.{SPACE}.svc.cluster.local") == address
    assert lookup(client, "example.org") == "no such name"


def test_the_host_reaches_pods_and_services(client: kube.PythonPod) -> None:
    for address in (
        kube.get("-n", SPACE, "service", "server")["spec"]["clusterIP"],
        kube.get("-n", SPACE, "pod", "server")["status"]["podIP"],
    ):
        kube.run("python3", "-c", f"import socket; socket.create_connection(('{address}', 8080), timeout=5)")


def test_no_packet_leaves_the_machine(client: kube.PythonPod) -> None:
    assert not client.connects("192.0.2.1", 80)


def test_network_policies_are_enforced(client: kube.PythonPod) -> None:
    address = kube.get("-n", SPACE, "pod", "server")["status"]["podIP"]
    assert client.connects("server", 8080)
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "server", "namespace": SPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "other"}}}], "ports": [{"port": "http"}]}],
        },
    }
    kube.apply(policy)
    kube.wait_until("the client is kept out", lambda: not client.connects("server", 8080), timeout=20)
    assert not client.connects(address, 8080)
    kube.kubectl("-n", SPACE, "label", "pod", "client", "role=other", "--overwrite")
    kube.wait_until("the client is permitted", lambda: client.connects("server", 8080), timeout=20)
    kube.kubectl("-n", SPACE, "delete", "networkpolicy", "server")
    kube.kubectl("-n", SPACE, "label", "pod", "client", "role=client", "--overwrite")
    kube.wait_until("the policy is gone", lambda: client.connects("server", 8080), timeout=20)


def test_a_pod_beyond_its_memory_is_killed(client: kube.PythonPod) -> None:
    code, _ = kube.run_pod(SPACE, kube.CLIENT_IMAGE, "-c", "b = bytearray(200 << 20)", command=["python3"],
                           resources={"limits": {"memory": "64Mi"}})  # fmt: skip
    assert code == 137
