"""The cluster as tests use it: kubectl and helm, waiting, pods that run one program.

Every wait has a limit, and its failure shows the last state. KUBECONFIG selects the cluster
(`cluster.sh env`).
"""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

TIMEOUT = 120.0
"""Limit of one command and of one wait, in seconds."""

CLIENT_IMAGE = "berth.test/sail:test"
"""An image with Python, PySpark and gRPC."""

RESTRICTED = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""A security context that the `restricted` pod security standard accepts."""

_numbers = itertools.count(1)


class CommandError(AssertionError):
    """A command ended with an error; the text has its output."""


def run(*command: str, stdin: str | None = None, timeout: float = TIMEOUT) -> str:
    """Runs a program and returns its output."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise CommandError(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def kubectl(*args: str, stdin: str | None = None, timeout: float = TIMEOUT) -> str:
    """Runs kubectl and returns its output."""
    return run("kubectl", *args, stdin=stdin, timeout=timeout)


def get(*args: str) -> Any:
    """The object or list that `kubectl get ARGS` finds."""
    return json.loads(kubectl("get", "-o", "json", *args))


def apply(*objects: dict[str, Any]) -> None:
    """Creates or changes objects."""
    kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def wait_until(what: str, condition: Callable[[], Any], timeout: float = TIMEOUT, interval: float = 0.5) -> Any:
    """Calls `condition` until its result is true, and returns that result."""
    deadline = time.monotonic() + timeout
    while True:
        last = condition()
        if last:
            return last
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}; last: {last!r}"
        time.sleep(interval)


def namespace(name: str, **labels: str) -> dict[str, Any]:
    """A namespace that accepts restricted pods only."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", **labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def secret(name: str, space: str, files: dict[str, str]) -> dict[str, Any]:
    """A Secret with one key for each file."""
    data = {key: base64.b64encode(text.encode()).decode() for key, text in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": space}, "data": data}


def pod(
    name: str,
    space: str,
    image: str,
    args: list[str],
    *,
    command: list[str] | None = None,
    env: dict[str, str] | None = None,
    secrets: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    **container: Any,
) -> dict[str, Any]:
    """A restricted pod that runs once. `secrets` are mounted: path to name of the Secret."""
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    for path, secret_name in (secrets or {}).items():
        mounts.append({"name": secret_name, "mountPath": path})
        volumes.append({"name": secret_name, "secret": {"secretName": secret_name}})
    main = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "args": args,
        "env": [{"name": key, "value": value} for key, value in (env or {}).items()],
        "securityContext": RESTRICTED,
        "volumeMounts": mounts,
        **container,
    }
    if command:
        main["command"] = command
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": labels or {}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [main],
            "volumes": volumes,
        },
    }


def service(name: str, space: str, port: int) -> dict[str, Any]:
    """A Service of the pods with the label app=NAME."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": space},
        "spec": {"selector": {"app": name}, "ports": [{"port": port}]},
    }


def wait_ready(space: str, name: str) -> None:
    """Waits until a pod is ready."""
    kubectl("-n", space, "wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={TIMEOUT:.0f}s", timeout=TIMEOUT + 10)


def run_pod(space: str, image: str, *args: str, **settings: Any) -> tuple[int, str]:
    """Runs a program in a new pod; returns its exit code and its output, then deletes the pod."""
    name = f"run-{next(_numbers)}"
    apply(pod(name, space, image, list(args), **settings))
    try:
        ended = wait_until(f"end of pod {name}", lambda: _terminated(space, name))
        return ended["exitCode"], kubectl("-n", space, "logs", name)
    finally:
        kubectl("-n", space, "delete", "pod", name, "--now")


def _terminated(space: str, name: str) -> Any:
    status = get("-n", space, "pod", name)["status"]
    states = [container["state"] for container in status.get("containerStatuses", [])]
    for state in states:
        # Never a passing state here: images are loaded before the tests.
        assert state.get("waiting", {}).get("reason") not in ("ErrImageNeverPull", "CreateContainerConfigError"), state
    return next((state["terminated"] for state in states if "terminated" in state), None)


class PythonPod:
    """A pod that waits, in which tests run Python programs."""

    def __init__(self, name: str, space: str, **settings: Any) -> None:
        self.name, self.space = name, space
        sleep = "import time; time.sleep(86400)"
        apply(pod(name, space, CLIENT_IMAGE, ["-c", sleep], command=["python3"], **settings))
        wait_ready(space, name)

    def python(self, program: str, *args: str, timeout: float = TIMEOUT) -> str:
        """Runs a program (its text) and returns its output."""
        return kubectl("-n", self.space, "exec", "-i", self.name, "--", "python3", "-", *args, stdin=program, timeout=timeout)

    def start(self, program: str, *args: str) -> subprocess.Popen[str]:
        """Starts a program; `communicate` returns its output."""
        command = ["kubectl", "-n", self.space, "exec", self.name, "--", "python3", "-u", "-c", program, *args]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def connects(self, host: str, port: int) -> bool:
        """Whether a TCP connection from the pod is accepted within two seconds."""
        program = (
            "import socket, sys\n"
            "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()\n"
            "except OSError as e: print(e)\n"
            "else: print('connected')"
        )
        return self.python(program, host, str(port)).strip() == "connected"
