"""What the driver of a distributed engine may create, asked of the real API server.

The chart's rights and admission policies are installed without Berth. A driver is a pod of this test; requests are
made with the token of its account that is bound to it, as the engine makes them.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kube
import pytest

CHART = Path(os.environ.get("BERTH_CHART", Path(__file__).resolve().parents[3] / "helm" / "berth"))
SPACE = "driver-test"
ACCOUNT = "driver"
SESSION = "s-00000000000000000001"
DRIVER = f"{SESSION}-g3"
OTHER = "s-00000000000000000002-g1"
IMAGE = "berth.test/sail:test"
Pod = dict[str, Any]

VALUES = {
    "signingKeys": {"existingSecret": "keys"},
    "tls": {"public": {"enabled": False}, "internal": {"mode": "plaintext"}},
    "redis": {"url": "redis://redis.data.svc:6379"},
    "sessionManager": {
        "kubernetes": {
            "enabled": True,
            "namespaces": [SPACE],
            "networkPolicy": {"apiServer": [{"cidr": "10.96.0.1/32", "ports": [443]}]},
            "distributedDrivers": [
                {"cluster": "large", "namespace": SPACE, "engine": "spark", "serviceAccount": ACCOUNT, "images": [IMAGE],
                 "maxCpu": "1", "maxMemory": "1Gi", "tolerations": ["example.org/spot"]}
            ],
        }
    },
}  # fmt: skip


class Driver:
    """A driver's pod, and kubectl with its token."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        session, generation = name.rsplit("-g", 1)
        labels = {"berth/role": "driver", "berth/session": session, "berth/generation": generation}
        pod = kube.pod(name, SPACE, IMAGE, ["-c", "import time; time.sleep(86400)"], command=["python3"], labels=labels)
        pod["spec"]["serviceAccountName"] = ACCOUNT
        kube.apply(pod)
        self.uid = kube.get("-n", SPACE, "pod", name)["metadata"]["uid"]
        self.token = kube.kubectl("-n", SPACE, "create", "token", ACCOUNT, "--bound-object-kind=Pod", f"--bound-object-name={name}",
                                  f"--bound-object-uid={self.uid}").strip()  # fmt: skip
        self._folder = folder

    def kubectl(self, *args: str, stdin: str | None = None, token: str | None = None) -> tuple[bool, str]:
        """Whether the command succeeded, and its output."""
        return as_token(token or self.token, self._folder, *args, stdin=stdin)

    def create(self, pod: Pod, token: str | None = None) -> tuple[bool, str]:
        return self.kubectl("-n", SPACE, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod), token=token)

    def worker(self, number: int = 1) -> Pod:
        """A worker as the engines create it."""
        session, generation = self.name.rsplit("-g", 1)
        labels = {"berth/role": "worker", "berth/cluster": "large", "berth/session": session, "berth/generation": generation}
        sizes = {"cpu": "500m", "memory": "512Mi"}
        pod = kube.pod(f"{self.name}-exec-{number}", SPACE, IMAGE, ["-c", "import time; time.sleep(86400)"], command=["python3"],
                       labels=labels, env={"A": "b"}, resources={"requests": sizes, "limits": sizes})  # fmt: skip
        owner = {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid, "controller": True}
        pod["metadata"]["ownerReferences"] = [owner]
        pod["spec"]["serviceAccountName"] = "berth-workers"
        pod["spec"]["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        context = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        pod["spec"]["containers"][0]["securityContext"] = context
        pod["spec"]["containers"][0]["env"].append(
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": self.name, "key": "KEY", "optional": True}}}
        )
        return pod


def as_token(token: str, folder: Path, *args: str, stdin: str | None = None) -> tuple[bool, str]:
    """Runs kubectl with a token and without the administrator's certificate."""
    admin = json.loads(kube.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config = {**admin, "users": [{"name": admin["users"][0]["name"], "user": {"token": token}}]}
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        done = subprocess.run(["kubectl", "--kubeconfig", file.name, *args], input=stdin, capture_output=True, text=True,
                              timeout=kube.TIMEOUT, check=False)  # fmt: skip
    return done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    folder = tmp_path_factory.mktemp("drivers")
    # Not restricted: what is refused here is refused by the policy, and not by the standard.
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    values = folder / "values.json"
    values.write_text(json.dumps(VALUES))
    rendered = kube.run("helm", "template", "berth", str(CHART), "--namespace", "berth", "--values", str(values),
                        "--show-only", "templates/distributed-drivers.yaml")  # fmt: skip
    kube.kubectl("apply", "-f", "-", stdin=rendered)
    one = Driver(DRIVER, folder)
    # A policy is in force a moment after it was created.
    foreign = one.worker()
    foreign["metadata"]["labels"] = {}
    kube.wait_until("the policy is in force", lambda: "ValidatingAdmissionPolicy" in one.create(foreign)[1], timeout=60)
    yield one
    kube.kubectl("delete", "-f", "-", "--ignore-not-found", stdin=rendered)
    kube.kubectl("delete", "namespace", "--timeout=100s", SPACE)


def at(path: str, value: Any) -> Callable[[Pod], None]:
    """Sets a value at the dotted path of a pod; `0` is the first of a list."""

    def edit(pod: Pod) -> None:
        *parents, last = path.split(".")
        place: Any = pod
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place[int(last) if isinstance(place, list) else last.replace("|", ".")] = value

    return edit


def adding(path: str, value: Any) -> Callable[[Pod], None]:
    """Appends to the list at the dotted path."""

    def edit(pod: Pod) -> None:
        *parents, last = path.split(".")
        place: Any = pod
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place.setdefault(last, []).append(value)

    return edit


def without(path: str) -> Callable[[Pod], None]:
    def edit(pod: Pod) -> None:
        *parents, last = path.split(".")
        place: Any = pod
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        del place[last]

    return edit


WORKER = "spec.containers.0"
CONTEXT = f"{WORKER}.securityContext"
EXTRA = {"name": "extra", "image": IMAGE, "command": ["true"]}
FORBIDDEN: dict[str, tuple[Callable[[Pod], None], str]] = {
    "no role": (without("metadata.labels.berth/role"), "must have the labels"),
    "role of a driver": (at("metadata.labels.berth/role", "driver"), "must have the labels"),
    "session of another": (at("metadata.labels.berth/session", "s-00000000000000000002"), "must have the labels"),
    "another generation": (at("metadata.labels.berth/generation", "4"), "must have the labels"),
    "another cluster": (at("metadata.labels.berth/cluster", "small"), "must have the labels"),
    "name of another driver": (at("metadata.name", f"{OTHER}-exec-1"), "name of a worker must begin"),
    "name of a session's pod": (at("metadata.name", "s-00000000000000000001-g4"), "name of a worker must begin"),
    "no owner": (without("metadata.ownerReferences"), "only owner"),
    "another owner": (at("metadata.ownerReferences.0.uid", "00000000-0000-0000-0000-000000000000"), "only owner"),
    "a second owner": (
        adding("metadata.ownerReferences", {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "1"}), "only owner"),
    "a finalizer": (at("metadata.finalizers", ["example.org/stay"]), "finalizers"),
    "another network": (at("metadata.annotations", {"k8s.v1.cni.cncf.io/networks": "host"}), "annotations"),
    "account of the driver": (at("spec.serviceAccountName", ACCOUNT), "must use the account"),
    "default account": (at("spec.serviceAccountName", "default"), "must use the account"),
    "a token": (at("spec.automountServiceAccountToken", True), "must use the account"),
    "a projected token": (
        adding("spec.volumes", {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}), "empty directories"),
    "another image": (at(f"{WORKER}.image", "example.org/miner:1"), "image of a worker"),
    "pull secrets": (at("spec.imagePullSecrets", [{"name": "registry"}]), "registry credentials"),
    "a second container": (adding("spec.containers", EXTRA), "exactly one container"),
    "an init container": (adding("spec.initContainers", EXTRA), "exactly one container"),
    "no limits": (without(f"{WORKER}.resources"), "limits of CPU and memory"),
    "no limit of memory": (without(f"{WORKER}.resources.limits.memory"), "limits of CPU and memory"),
    "too many CPUs": (at(f"{WORKER}.resources.limits.cpu", "1001m"), "limits of CPU and memory"),
    "too much memory": (at(f"{WORKER}.resources.limits.memory", "1025Mi"), "limits of CPU and memory"),
    "a GPU": (at(f"{WORKER}.resources.limits.example|org/gpu", "1"), "limits of CPU and memory"),
    "network of the node": (at("spec.hostNetwork", True), "namespaces or ports of its node"),
    "processes of the node": (at("spec.hostPID", True), "namespaces or ports of its node"),
    "IPC of the node": (at("spec.hostIPC", True), "namespaces or ports of its node"),
    "port of the node": (at(f"{WORKER}.ports", [{"containerPort": 80, "hostPort": 80}]), "namespaces or ports of its node"),
    "folder of the node": (adding("spec.volumes", {"name": "h", "hostPath": {"path": "/"}}), "empty directories"),
    "a Secret as volume": (adding("spec.volumes", {"name": "s", "secret": {"secretName": DRIVER}}), "empty directories"),
    "a volume claim": (adding("spec.volumes", {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}), "empty directories"),
    "a ConfigMap as volume": (adding("spec.volumes", {"name": "c", "configMap": {"name": "c"}}), "empty directories"),
    "Secret of another session": (
        adding(f"{WORKER}.env", {"name": "S", "valueFrom": {"secretKeyRef": {"name": OTHER, "key": "token"}}}), "environment"),
    "a ConfigMap in the environment": (
        adding(f"{WORKER}.env", {"name": "S", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}), "environment"),
    "a whole Secret": (at(f"{WORKER}.envFrom", [{"secretRef": {"name": OTHER}}]), "environment"),
    "root": (at(f"{CONTEXT}.runAsUser", 0), "drop ALL capabilities"),
    "root by the pod": (at("spec.securityContext.runAsUser", 0), "other than root"),
    "perhaps root": (without("spec.securityContext.runAsNonRoot"), "other than root"),
    "no seccomp": (at("spec.securityContext.seccompProfile.type", "Unconfined"), "RuntimeDefault"),
    "no seccomp in the container": (at(f"{CONTEXT}.seccompProfile", {"type": "Unconfined"}), "drop ALL capabilities"),
    "a sysctl": (at("spec.securityContext.sysctls", [{"name": "kernel.shm_rmid_forced", "value": "0"}]), "other than root"),
    "privileged": (at(CONTEXT, {"privileged": True}), "drop ALL capabilities"),
    "privileges later": (without(f"{CONTEXT}.allowPrivilegeEscalation"), "drop ALL capabilities"),
    "capabilities": (at(f"{CONTEXT}.capabilities.add", ["NET_RAW"]), "drop ALL capabilities"),
    "default capabilities": (without(f"{CONTEXT}.capabilities"), "drop ALL capabilities"),
    "a writable root": (at(f"{CONTEXT}.readOnlyRootFilesystem", False), "drop ALL capabilities"),
    "a probe from the node": (
        at(f"{WORKER}.livenessProbe", {"httpGet": {"host": "169.254.169.254", "port": 80}}), "probes or lifecycle"),
    "a hook from the node": (
        at(f"{WORKER}.lifecycle", {"preStop": {"httpGet": {"host": "169.254.169.254", "port": 80}}}), "probes or lifecycle"),
    "a chosen node": (at("spec.nodeName", "berth-node"), "choose its node"),
    "a priority": (at("spec.priorityClassName", "system-node-critical"), "choose its node"),
    "another scheduler": (at("spec.schedulerName", "mine"), "choose its node"),
    "all taints": (at("spec.tolerations", [{"operator": "Exists"}]), "tolerate other taints"),
    "control plane": (
        at("spec.tolerations", [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]), "tolerate other taints"),
    "a long end": (at("spec.terminationGracePeriodSeconds", 86400), "end within 60 s"),
    "started again": (at("spec.restartPolicy", "Always"), "end within 60 s"),
}  # fmt: skip
ALLOWED: dict[str, Callable[[Pod], None]] = {
    "a worker": lambda _: None,
    "labels of the engine": at("metadata.labels.spark-role", "executor"),
    "the highest limits": at(f"{WORKER}.resources", {"limits": {"cpu": "1", "memory": "1Gi"}}),
    "its own address": adding(f"{WORKER}.env", {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
    "a taint that the operator allows": at("spec.tolerations", [{"key": "example.org/spot", "operator": "Exists"}]),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_driver_may_create_its_workers(driver: Driver, case: str) -> None:
    pod = driver.worker()
    ALLOWED[case](pod)
    created, output = driver.create(pod)
    assert created, output


def test_a_driver_may_create_nothing_else(driver: Driver) -> None:
    wrong = []
    for case, (edit, message) in FORBIDDEN.items():
        pod = copy.deepcopy(driver.worker())
        edit(pod)
        created, output = driver.create(pod)
        if created or message not in output or "ValidatingAdmissionPolicy" not in output:
            wrong.append(f"{case}: {output.strip()}")
    assert not wrong, "\n".join(wrong)
    assert len(FORBIDDEN) >= 25
    print(f"{len(FORBIDDEN)} creates refused")


def test_a_token_without_a_pod_creates_nothing(driver: Driver) -> None:
    token = kube.kubectl("-n", SPACE, "create", "token", ACCOUNT).strip()
    created, output = driver.create(driver.worker(), token=token)
    assert not created and "must be bound to its pod" in output, output


def test_a_driver_deletes_its_own_workers_only(driver: Driver, tmp_path: Path) -> None:
    other = Driver(OTHER, tmp_path)
    for each in (driver, other):
        created, output = each.kubectl("-n", SPACE, "create", "-f", "-", stdin=json.dumps(each.worker()))
        assert created, output
    theirs = f"{OTHER}-exec-1"
    for target in (theirs, OTHER, DRIVER):
        deleted, output = driver.kubectl("-n", SPACE, "delete", "pod", target, "--now", "--wait=false")
        assert not deleted and "deletes only its own workers" in output, output
    # As engines do it: all pods with a label, which here are those of both.
    token, url = driver.token, f"/api/v1/namespaces/{SPACE}/pods?labelSelector=berth/role%3Dworker"
    left = delete_collection(token, url)
    assert "deletes only its own workers" in left, left
    kube.kubectl("-n", SPACE, "get", "pod", theirs)
    left = delete_collection(token, url.replace("worker", f"worker,berth/session%3D{SESSION}"))
    kube.wait_until("its own worker is gone", lambda: f"{DRIVER}-exec-1" not in kube.kubectl("-n", SPACE, "get", "pods", "-o", "name"))
    # A worker goes with its driver.
    kube.kubectl("-n", SPACE, "delete", "pod", OTHER, "--now")
    kube.wait_until("the worker is gone", lambda: theirs not in kube.kubectl("-n", SPACE, "get", "pods", "-o", "name"))


def delete_collection(token: str, url: str) -> str:
    """The API server's answer to a deletion of several objects."""
    import ssl
    import urllib.error
    import urllib.request

    server = json.loads(kube.kubectl("config", "view", "--raw", "--minify", "-o", "json"))["clusters"][0]["cluster"]["server"]
    request = urllib.request.Request(server + url, method="DELETE", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=20, context=ssl._create_unverified_context()) as reply:
            return reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


@pytest.mark.parametrize(
    "args",
    [
        ("exec", "POD", "--", "true"),
        ("get", "secrets"),
        ("get", "configmaps"),
        ("patch", "pod", "POD", "-p", '{"metadata":{"labels":{"berth/session":"x"}}}'),
        ("create", "token", ACCOUNT),
        ("create", "configmap", "x"),
        ("-n", "kube-system", "get", "pods"),
    ],
)
def test_a_driver_has_no_other_rights(driver: Driver, args: tuple[str, ...]) -> None:
    done, output = driver.kubectl("-n", SPACE, *(DRIVER if word == "POD" else word for word in args))
    assert not done and "forbidden" in output.lower(), output


def test_more_rights_open_no_way_into_workers(driver: Driver) -> None:
    """Somebody else's Role may allow what ours does not; the policy still denies it."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "more", "namespace": SPACE},
        "rules": [{"apiGroups": [""], "resources": ["pods", "pods/exec", "pods/ephemeralcontainers", "pods/eviction"], "verbs": ["*"]}],
    }  # fmt: skip
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "more", "namespace": SPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "more"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SPACE}],
    }  # fmt: skip
    kube.apply(role, binding)
    kube.wait_ready(SPACE, DRIVER)
    try:
        label = ("patch", "pod", DRIVER, "-p", '{"metadata":{"labels":{"berth/session":"x"}}}')
        debug = '{"spec":{"ephemeralContainers":[{"name":"e","image":"' + IMAGE + '"}]}}'
        for args in (
            ("exec", DRIVER, "--", "python3", "-c", "pass"),
            label,
            ("patch", "pod", DRIVER, "--subresource=ephemeralcontainers", "-p", debug),
        ):
            done, output = driver.kubectl("-n", SPACE, *args)
            assert not done and "ValidatingAdmissionPolicy" in output, (args, output)
    finally:
        kube.kubectl("-n", SPACE, "delete", "role,rolebinding", "more")
