"""Redis as operators run it: with sentinels, and as a cluster. All in one namespace, with a password."""

from __future__ import annotations

from typing import Any

import kube

SPACE = "redis"
IMAGE = "berth.test/redis:test"
PASSWORD = "of-the-test"
COMMON = ["--protected-mode", "no", "--dir", "/tmp", "--save", "", "--maxmemory-policy", "noeviction",
          "--requirepass", PASSWORD, "--masterauth", PASSWORD]  # fmt: skip
DOWN_AFTER = 2000
"""Time after which a silent server counts as lost, in milliseconds."""


def start() -> None:
    """Creates the namespace, and the Secret that the chart reads in the namespace `berth`."""
    kube.apply(kube.namespace(SPACE))


def cli(pod: str, *args: str, port: int = 6379) -> str:
    """Output of redis-cli in a pod."""
    login = [] if port == 26379 else ["-a", PASSWORD, "--no-auth-warning"]
    return kube.kubectl("-n", SPACE, "exec", pod, "--", "redis-cli", "-p", str(port), *login, *args).strip()


def kill(pod: str) -> None:
    """The end of a server without a chance to say so."""
    kube.kubectl("-n", SPACE, "delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")


def _server(name: str, *args: str, **settings: Any) -> dict[str, Any]:
    probe = {"tcpSocket": {"port": 6379}, "periodSeconds": 1}
    return kube.pod(name, SPACE, IMAGE, [*COMMON, *args], labels={"app": name}, readinessProbe=probe, **settings)


def address(pod: str) -> str:
    """The address of a pod."""
    return kube.get("-n", SPACE, "pod", pod)["status"]["podIP"]


def _sentinel(name: str, primary: str) -> dict[str, Any]:
    """Its configuration is a file that it writes itself, so another container makes the first one."""
    lines = [
        "port 26379", "dir /tmp", "protected-mode no",
        f"sentinel monitor berth {primary} 6379 2", f"sentinel auth-pass berth {PASSWORD}",
        f"sentinel down-after-milliseconds berth {DOWN_AFTER}", "sentinel failover-timeout berth 10000",
    ]  # fmt: skip
    probe = {"tcpSocket": {"port": 26379}, "periodSeconds": 1}
    pod = kube.pod(name, SPACE, IMAGE, ["/tmp/sentinel.conf", "--sentinel"], labels={"app": name}, readinessProbe=probe)
    write = f"open('/tmp/sentinel.conf', 'w').write({chr(10).join(lines)!r} + '\\n')"
    pod["spec"]["initContainers"] = [{
        "name": "configuration", "image": kube.CLIENT_IMAGE, "imagePullPolicy": "Never", "command": ["python3", "-c", write],
        "securityContext": kube.RESTRICTED, "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }]  # fmt: skip
    return pod


def with_sentinels() -> str:
    """A primary, a replica and three sentinels; returns the URL for the chart."""
    kube.apply(_server("primary"))
    kube.wait_ready(SPACE, "primary")
    names = [f"sentinel-{number}" for number in range(3)]
    primary = address("primary")
    kube.apply(_server("replica", "--replicaof", primary, "6379"), *(_sentinel(name, primary) for name in names),
               *(kube.service(name, SPACE, 26379) for name in names))  # fmt: skip
    for name in ("replica", *names):
        kube.wait_ready(SPACE, name)
    kube.wait_until("the sentinels see each other and the replica", lambda: all(_complete(name) for name in names))
    kube.wait_until("the replica has the data", lambda: "master_link_status:up" in cli("replica", "info", "replication"))
    return "redis-sentinel://" + ",".join(f"{name}.{SPACE}.svc:26379" for name in names) + "/berth"


def _complete(sentinel: str) -> bool:
    words = cli(sentinel, "sentinel", "master", "berth", port=26379).split()
    facts = dict(zip(words[::2], words[1::2], strict=False))
    return (facts.get("num-other-sentinels"), facts.get("num-slaves")) == ("2", "1")


def primary_by_sentinel() -> str:
    """The address of the present primary."""
    return cli("sentinel-0", "sentinel", "get-master-addr-by-name", "berth", port=26379).split()[0]


def clustered() -> str:
    """Three primaries with a replica each; returns the URL for the chart."""
    names = [f"node-{number}" for number in range(6)]
    cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_AFTER), "--cluster-config-file", "/tmp/nodes.conf"]
    kube.apply(*(_server(name, *cluster) for name in names), *(kube.service(name, SPACE, 6379) for name in names))
    for name in names:
        kube.wait_ready(SPACE, name)
    members = [f"{address(name)}:6379" for name in names]
    cli("node-0", "--cluster", "create", *members, "--cluster-replicas", "1", "--cluster-yes")
    kube.wait_until("the cluster is complete", lambda: all("cluster_state:ok" in cli(name, "cluster", "info") for name in names))
    return "redis-cluster://" + ",".join(f"{name}.{SPACE}.svc:6379" for name in names[:3])


def primary_with(pattern: str) -> str:
    """The pod of the primary that has a key like this."""
    for number in range(6):
        name = f"node-{number}"
        if "role:master" in cli(name, "info", "replication") and cli(name, "--scan", "--pattern", pattern):
            return name
    raise AssertionError(f"no primary has a key like {pattern}")
