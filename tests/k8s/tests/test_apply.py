"""The chart's table of values on a real API server: helm/tests/apply.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import kube

REPOSITORY = Path(__file__).resolve().parents[3]
HOME = Path(os.environ.get("BERTH_HOME", REPOSITORY / ".berth"))

NAMESPACES = ("namespace/berth", "namespace/sessions", "namespace/sessions-gpu", "namespace/grafana")
"""Those that apply.py creates and deletes."""


def test_a_real_api_server_accepts_every_object() -> None:
    kubectl = shutil.which("kubectl")
    assert kubectl, "kubectl is not on the PATH"
    definitions = Path(kubectl).with_name("crds.yaml")
    kube.kubectl("apply", "--server-side", "--filename", str(definitions))
    kube.kubectl("wait", "--for=condition=Established", "--filename", str(definitions), "--timeout=60s")
    python = HOME / "venv-chart" / "bin" / "python"
    try:
        output = kube.run(str(python), str(REPOSITORY / "helm" / "tests" / "apply.py"), timeout=300)
    finally:
        # The next test makes some of them again.
        kube.kubectl("wait", "--for=delete", *NAMESPACES, "--timeout=100s")
    print(output)
    assert ", 0 skipped" in output and "2 passed, 0 failed" in output, output
