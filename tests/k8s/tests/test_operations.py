"""The chart's other ways: keys by a Job, service-account tokens, `helm test`, Redis with sentinels and as a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import berth
import grpc
import kube
import pytest
import redis_servers

KEYS = f"{berth.RELEASE}-signing-keys"
AUDIENCE = "berth-internal"
ROUTES = "/berth.internal.v1.RouteService/ReportActivity"
LEDGER = "/berth.internal.v1.TokenLedger/ReportKeys"
LOAD_SECONDS = 25
REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def cluster_issuer() -> str:
    return json.loads(kube.kubectl("get", "--raw", "/.well-known/openid-configuration"))["issuer"]


def values() -> dict[str, Any]:
    """What differs from the installation of test_chart."""
    tokens = {"issuer": cluster_issuer(), "audience": AUDIENCE, "jwks": {"existingConfigMap": "cluster-keys"}}
    secrets = {"sessionManager": "session-manager-tls", "tokenIssuer": "token-issuer-tls"}
    return {
        "signingKeys": {"job": {"enabled": True}},
        "tls": {
            "public": {"existingSecret": "public-tls"},
            "internal": {"mode": "tokens", "existingSecrets": secrets, "tokens": tokens},
        },
        "redis": {"url": redis_servers.with_sentinels(), "existingSecret": "redis", "passwordKey": "password"},
        "helmTest": {
            "enabled": True, "existingSecret": "tester", "cluster": "pods", "timeoutSeconds": 120,
            "image": {"registry": "berth.test", "repository": "sail", "tag": "test"},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[berth.Berth]:
    redis_servers.start()
    kube.apply(
        kube.namespace(berth.SPACE),
        kube.secret("redis", berth.SPACE, {"password": redis_servers.PASSWORD}),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-keys", "namespace": berth.SPACE},
         "data": {"jwks.json": kube.kubectl("get", "--raw", "/openid/v1/jwks")}},
    )  # fmt: skip
    yield berth.Berth(tmp_path_factory.mktemp("berth"), **values())
    berth.remove_namespaces(redis_servers.SPACE)


@pytest.fixture(scope="module")
def client(installation: berth.Berth) -> kube.PythonPod:
    return installation.client("client")


def keys_secret() -> dict[str, Any]:
    return kube.get("-n", berth.SPACE, "secret", KEYS)


def jobs_of_keys() -> list[dict[str, Any]]:
    return kube.get("-n", berth.SPACE, "jobs", "-l", "app.kubernetes.io/component=keys")["items"]


def test_a_job_made_the_signing_key(installation: berth.Berth) -> None:
    secret = keys_secret()
    assert len(secret["data"]) == 1 and next(iter(secret["data"])).endswith(".pem")
    (owner,) = secret["metadata"]["ownerReferences"]
    account = kube.get("-n", berth.SPACE, "serviceaccount", f"{berth.RELEASE}-keys")
    assert (owner["kind"], owner["uid"]) == ("ServiceAccount", account["metadata"]["uid"])


def test_an_upgrade_keeps_the_signing_key(installation: berth.Berth) -> None:
    before, (first,) = keys_secret(), jobs_of_keys()
    installation.upgrade(signingKeys={"job": {"enabled": True, "podAnnotations": {"test/upgrade": "1"}}})
    (second,) = kube.wait_until("the new Job alone", lambda: len(jobs := jobs_of_keys()) == 1 and jobs)
    assert second["metadata"]["name"] != first["metadata"]["name"]
    kube.kubectl("-n", berth.SPACE, "wait", "--for=condition=Complete", f"job/{second['metadata']['name']}", "--timeout=60s")
    for part in ("data", "metadata"):
        assert keys_secret()[part] == before[part]


def test_a_key_is_added_and_the_old_one_stays(installation: berth.Berth) -> None:
    before = keys_secret()["data"]
    program = Path(os.environ["BERTH_PROGRAMS"]) / "berth"
    output = kube.run(str(program), "--output", "json", "keys", "secret", KEYS, "--namespace", berth.SPACE, "--rotate")
    after = keys_secret()["data"]
    assert before.items() < after.items() and len(after) == 2
    assert [key["file"] for key in json.loads(output)["keys"]] == sorted(after)


def test_helm_test_runs_a_query(installation: berth.Berth) -> None:
    kube.apply(kube.secret("tester", berth.SPACE, {"key": installation.key}))
    output = kube.run("helm", "test", berth.RELEASE, "--namespace", berth.SPACE, "--timeout", "2m", "--logs", timeout=150)
    assert "Succeeded" in output and "the sum of 1000 rows is 499500" in output, output
    left = lambda: kube.get("-n", berth.SESSIONS, "pods")["items"]  # noqa: E731
    kube.wait_until("the pod of the session is gone", lambda: not left(), timeout=60)


@contextlib.contextmanager
def internal_port(component: str, port: int) -> Iterator[str]:
    """A local address of a port that network policies close: kubectl enters the pod itself."""
    command = ["kubectl", "-n", berth.SPACE, "port-forward", f"deployment/{berth.RELEASE}-{component}", f":{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found, "kubectl port-forward ended"
        yield f"localhost:{found[1]}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def service_token(account: str, space: str = berth.SPACE, audience: str | None = AUDIENCE) -> str:
    """A token of a service account, signed by the API server."""
    return kube.kubectl("-n", space, "create", "token", account, *([f"--audience={audience}"] if audience else [])).strip()


def call(channel: grpc.Channel, method: str, token: str | None) -> grpc.StatusCode:
    """The outcome of an empty request."""
    try:
        channel.unary_unary(method)(b"", timeout=10, metadata=[("x-berth-service-token", token)] if token else [])
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_only_tokens_of_the_services_open_the_internal_port(installation: berth.Berth) -> None:
    proxy, issuer = (f"{berth.RELEASE}-{name}" for name in ("spark-proxy", "token-issuer"))
    kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": proxy, "namespace": berth.CLIENTS}})
    good = service_token(proxy)
    head, claims, signature = good.split(".")
    refused = {
        "no token": (ROUTES, None),
        "another audience": (ROUTES, service_token(proxy, audience="somebody")),
        "the audience of the API server": (ROUTES, service_token(proxy, audience=None)),
        "another account of the namespace": (ROUTES, service_token("default")),
        "the account of the same name in another namespace": (ROUTES, service_token(proxy, space=berth.CLIENTS)),
        "the issuer at the routes": (ROUTES, service_token(issuer)),
        "the proxy at the ledger": (LEDGER, good),
        "a changed signature": (ROUTES, f"{head}.{claims}.{signature[::-1]}"),
        "no signature": (ROUTES, f"{head}.{claims}."),
    }
    with internal_port("session-manager", 8082) as address:
        name = (("grpc.ssl_target_name_override", f"{berth.host('session-manager-internal')}"),)
        trust = grpc.ssl_channel_credentials(installation.authority.certificate.encode())
        with grpc.secure_channel(address, trust, options=name) as channel:
            found = {what: call(channel, *attempt) for what, attempt in refused.items()}
            accepted = {method: call(channel, method, service_token(account)) for method, account in ((ROUTES, proxy), (LEDGER, issuer))}
    assert {what: code for what, code in found.items() if code not in REFUSED} == {}
    # Whether the empty request makes sense is decided later.
    assert not REFUSED & set(accepted.values()), accepted
    print({what: code.name for what, code in found.items()}, {method: code.name for method, code in accepted.items()})


def queries_during(installation: berth.Berth, client: kube.PythonPod, failover: Any) -> None:
    """Runs queries of one session while `failover` happens; then the session still exists, and a new one can be made."""
    session = installation.command("create", "--cluster", "shared", "--wait")["id"]
    url = installation.command("token", session)["connection_url"]
    load = client.start(berth.LOAD, url, str(LOAD_SECONDS))
    assert load.stdout is not None and load.stdout.readline().strip() == "started"
    started = time.monotonic()
    failover(session)
    promoted = time.monotonic() - started
    kube.wait_until("a session is created", lambda: _created(installation), timeout=60)
    recovered = time.monotonic() - started
    output, errors = load.communicate(timeout=180)
    assert load.returncode == 0, errors
    pods = kube.get("-n", berth.SPACE, "pods", "-l", "app.kubernetes.io/component=session-manager")["items"]
    restarts = [container["restartCount"] for pod in pods for container in pod["status"]["containerStatuses"]]
    print(json.loads(output), {"promoted after": round(promoted, 1), "create works again after": round(recovered, 1), "restarts": restarts})
    result = json.loads(output)
    assert result["failures"] == [] and result["calls"] > 50
    assert installation.command("show", session)["status"].lower().endswith("active")
    again = installation.command("token", session)["connection_url"]
    assert client.python(berth.QUERY, again, "SELECT sum(id) FROM range(1000)").strip() == "499500"


def _created(installation: berth.Berth) -> Any:
    try:
        return installation.command("create", "--cluster", "shared", "--wait")["id"]
    except AssertionError as error:
        print(error)  # the store has no primary yet
        return None


def test_sessions_go_on_when_sentinels_promote_the_replica(installation: berth.Berth, client: kube.PythonPod) -> None:
    def failover(_session: str) -> None:
        primary = redis_servers.primary_by_sentinel()
        assert primary == redis_servers.address("primary")
        redis_servers.kill("primary")
        kube.wait_until("another primary", lambda: redis_servers.primary_by_sentinel() != primary, timeout=60)

    queries_during(installation, client, failover)


def test_sessions_go_on_when_a_cluster_promotes_a_replica(installation: berth.Berth, client: kube.PythonPod) -> None:
    url = redis_servers.clustered()
    installation.upgrade(redis={**installation.values["redis"], "url": url})
    # The manager that leaves still has the Redis of before.
    managers = lambda: kube.get("-n", berth.SPACE, "pods", "-l", "app.kubernetes.io/component=session-manager")["items"]  # noqa: E731
    kube.wait_until("the old manager is gone", lambda: len(managers()) == 1, timeout=60)

    def failover(session: str) -> None:
        pod = redis_servers.primary_with(f"berth:*:session:*{session.removeprefix('s-')}*")
        others = [f"node-{number}" for number in range(6) if f"node-{number}" != pod]
        redis_servers.kill(pod)
        lost = lambda: "cluster_state:ok" in redis_servers.cli(others[0], "cluster", "info") and "fail" in redis_servers.cli(  # noqa: E731
            others[0], "cluster", "nodes"
        )
        kube.wait_until("the cluster replaced the primary", lost, timeout=60)

    queries_during(installation, client, failover)


def test_the_new_key_is_published(installation: berth.Berth) -> None:
    program = "import json, ssl, sys, urllib.request as u; print(len(json.load(u.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=5))['keys']))"

    def published() -> bool:
        with internal_port("token-issuer", 8084) as address:
            return kube.run("python3", "-c", program, f"https://{address}/.well-known/jwks.json").strip() == "2"

    kube.wait_until("two keys", published, timeout=120, interval=3)


def test_uninstall_leaves_nothing(installation: berth.Berth) -> None:
    installation.uninstall()
    gone = lambda: not kube.kubectl("-n", berth.SPACE, "get", "secret", KEYS, "--ignore-not-found", "-o", "name")  # noqa: E731
    kube.wait_until("the signing keys are deleted with their owner", gone, timeout=60)
