"""Policies: checkov finds nothing but the exceptions below, each with its reason."""

import json
import pathlib
import subprocess
import tempfile

import cases
from chart import CHART, HOME, LIMIT, at, merged, render
from suite import check

EXCEPTIONS = {
    "CKV_K8S_8": "the pod of helm test ends by itself and has a deadline",
    "CKV_K8S_9": "the pod of helm test serves nobody",
    "CKV_K8S_11": "CPU limits throttle a data path; requests share the CPU",
    "CKV_K8S_15": "a tag names one image; the operator can set Always",
    "CKV_K8S_35": "the services read the password of Redis, and helm test its key, from the environment",
    "CKV_K8S_38": "session-manager calls the API server where sessions are pods, and the Jobs of keys do",
    "CKV_K8S_43": "digests belong to the operator's own registry, and can be set",
}


@check
def policies_are_followed_but_for_explained_exceptions():
    everything = merged(merged(cases.KUBERNETES, at("sessionManager.kubernetes.createNamespaces", True)), {
        "helmTest": {"enabled": True, "existingSecret": "tester"}, "ingress": {"enabled": True, "host": "berth.example.org"}})
    with tempfile.TemporaryDirectory(prefix="berth-chart-") as folder:
        for name, values in (("ha", everything), ("trial", {})):
            pathlib.Path(folder, f"{name}.yaml").write_text(render(values, [CHART / f"values-{name}.yaml"]).text)
        done = subprocess.run(
            [HOME / "venv-checkov" / "bin" / "checkov", "--directory", folder, "--framework", "kubernetes", "--skip-download", "--output", "json"],
            capture_output=True, text=True, timeout=LIMIT * 2, check=False)
    report = json.loads(done.stdout)
    failed = {}
    for one in report["results"]["failed_checks"]:
        failed.setdefault(one["check_id"], []).append(one["resource"])
    assert not report["results"]["parsing_errors"] and report["summary"]["passed"] > 500, report["summary"]
    unexplained = {check: resources for check, resources in failed.items() if check not in EXCEPTIONS}
    assert not unexplained, unexplained
    assert not EXCEPTIONS.keys() - failed.keys(), f"exceptions that nothing needs: {EXCEPTIONS.keys() - failed.keys()}"
    for one in ("CKV_K8S_8", "CKV_K8S_9"):
        assert all("helm-test" in resource for resource in failed[one]), failed[one]
    callers = sorted(resource.rsplit(".", 1)[-1] for resource in failed["CKV_K8S_38"])
    assert len(callers) == 3 and callers[0].startswith("berth-cookie-keys-") and callers[1].startswith("berth-keys-"), callers
    assert callers[2] == "berth-session-manager", callers
    return f"{report['summary']['passed']} passed, {len(EXCEPTIONS)} exceptions"
