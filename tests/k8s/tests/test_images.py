"""Berth's images: each program runs as an unprivileged user on a read-only root."""

from __future__ import annotations

from collections.abc import Iterator

import kube
import pytest

SPACE = "images-test"
IMAGES = {name: f"berth.test/berth/{name}:test" for name in ("session-manager", "token-issuer", "spark-proxy", "console", "berth")}


@pytest.fixture(scope="module", autouse=True)
def space() -> Iterator[None]:
    kube.apply(kube.namespace(SPACE))
    yield
    kube.kubectl("delete", "namespace", "--wait=false", SPACE)


@pytest.mark.parametrize("name", IMAGES)
def test_the_program_runs(name: str) -> None:
    code, output = kube.run_pod(SPACE, IMAGES[name], "--help")
    assert code == 0 and "Usage:" in output, output


@pytest.mark.parametrize(
    ("host", "outcome"),
    [("kube-dns.kube-system.svc.cluster.local", "Connection refused"), ("absent.invalid", "Name or service not known")],
)
def test_a_static_program_resolves_names_of_the_cluster(host: str, outcome: str) -> None:
    environment = {"BERTH_MANAGER": f"https://{host}:8081", "BERTH_KEY": "berth_sa_" + "A" * 43}
    code, output = kube.run_pod(SPACE, IMAGES["berth"], "list", env=environment)
    assert code == 1 and outcome in output, output
