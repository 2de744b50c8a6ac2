"""The chart on a real API server: `KUBECONFIG=… python helm/tests/apply.py`, with kubectl on the PATH.

Applies every case of the table server-side, as a dry run, and asks the server for the rights of session-manager and of
the Job of signing keys. It creates the namespaces of the cases and the rights of two cases, and deletes them. Kinds that
the server does not have (custom resources) are counted as skipped.
"""

import itertools
import json
import subprocess
import sys

from check_isolation import RIGHTS, RIGHTS_OF_KEYS
from chart import LIMIT, NAMESPACE
from suite import all_rendered, expect, in_parallel

# Account and namespace = its rights there.
GRANTED = {
    "session-manager": {"sessions": RIGHTS, "sessions-gpu": RIGHTS, NAMESPACE: {}, "default": {}},
    "keys": {NAMESPACE: RIGHTS_OF_KEYS, "sessions": {}, "default": {}},
}
NAMESPACES = (NAMESPACE, "sessions", "sessions-gpu", "grafana")
# Case = the warning that it is about.
EXPECTED = {"TLSRoute of an older Gateway API": "The v1alpha2 version of TLSRoute has been deprecated"}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = ("pods", "pods/log", "pods/exec", "secrets", "secrets (berth-signing-keys)", "configmaps", "configmaps (berth-sessions)", "events",
             "services", "serviceaccounts", "serviceaccounts (berth-keys)", "serviceaccounts/token", "persistentvolumeclaims", "nodes", "namespaces",
             "deployments.apps", "jobs.batch", "roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io")


def kubectl(*args, objects=None):
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}) if objects is not None else None
    return subprocess.run(["kubectl", *args], input=text, capture_output=True, text=True, timeout=LIMIT, check=False)


def done(*args, objects=None):
    finished = kubectl(*args, objects=objects)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def served_kinds():
    lines = done("api-resources", "--no-headers").splitlines()
    return {line.split()[-1] for line in lines}


def apply_cases():
    kinds, skipped, problems, applied = served_kinds(), [], [], 0
    for name, one in all_rendered().items():
        objects = [item for item in one.objects if item["kind"] in kinds]
        skipped += [item["kind"] for item in one.objects if item["kind"] not in kinds]
        applied += len(objects)
        finished = kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-", objects=objects)
        said = [line for line in finished.stderr.splitlines() if EXPECTED.get(name, "\0") not in line]
        if finished.returncode or "Warning" in "".join(said):
            problems.append(f"{name}: {finished.stderr.strip()}")
    expect(problems)
    unknown = f": the server has no {', '.join(sorted(set(skipped)))}" if skipped else ""
    return f"{len(all_rendered())} cases, {applied} objects, {len(skipped)} skipped{unknown}"


def review(account, namespace, resource, verb):
    """A SubjectAccessReview for an account of the release."""
    path, _, name = resource.partition(" ")
    path, _, part = path.partition("/")
    kind, _, group = path.partition(".")
    attributes = {"namespace": namespace, "group": group, "resource": kind, "subresource": part, "verb": verb, "name": name.strip("()")}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": f"system:serviceaccount:{NAMESPACE}:berth-{account}", "resourceAttributes": attributes}}


def granted(account, namespace, resource, verb):
    """Whether the table allows it. A right to all objects of a kind is one to each of them."""
    rights = GRANTED[account][namespace]
    return verb in rights.get(resource, set()) | rights.get(resource.partition(" ")[0], set())


def rights_equal_the_table():
    for name in ("sessions as pods", "keys by a Job"):
        one = all_rendered()[name]
        done("apply", "--server-side", "--filename=-", objects=[*one.of("Role"), *one.of("RoleBinding")])
    asked = [(account, *each) for account, spaces in GRANTED.items() for each in itertools.product(spaces, RESOURCES, VERBS)]
    output = 'jsonpath={.status.allowed}{"\\n"}'
    answers = done("create", "--filename=-", f"--output={output}", objects=[review(*each) for each in asked]).split()
    wanted = ["true" if granted(*each) else "false" for each in asked]
    wrong = [each for each, answer, right in zip(asked, answers, wanted, strict=True) if answer != right]
    assert not wrong, wrong
    return f"{len(asked)} questions"


def main():
    mine = [name for name in NAMESPACES if kubectl("create", "namespace", name).returncode == 0]
    failed = 0
    try:
        # The server then warns about pods that are not restricted, and a warning is a problem.
        done("label", "namespace", NAMESPACE, "--overwrite", "pod-security.kubernetes.io/warn=restricted")
        for one in (apply_cases, rights_equal_the_table):
            try:
                print(f"ok {one.__name__.replace('_', ' ')} ({one()})", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"FAILED {one.__name__}: {error}", flush=True)
    finally:
        in_parallel(lambda name: kubectl("delete", "namespace", name, "--wait=false"), mine)
    print(f"chart on a server: {2 - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
