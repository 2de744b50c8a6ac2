"""deploy/compose.yaml: its addresses agree, the services accept their configuration, and Podman starts all of it.

The cluster is not needed. The programs are those of the images (BERTH_PROGRAMS); BERTH_IMAGES and BERTH_LOCAL_IMAGES are
the folders of Berth's and other images.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import kube
import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
SERVICES = ("session-manager", "token-issuer", "spark-proxy", "console")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def strings(value: Any) -> list[str]:
    """All texts in a configuration."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for entry in value for text in strings(entry)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("service", SERVICES)
def test_the_service_accepts_its_configuration(service: str, tmp_path: Path) -> None:
    programs = Path(os.environ["BERTH_PROGRAMS"])
    kube.run(str(programs / "berth"), "keys", "signing", str(tmp_path / "signing.pem"))
    kube.run(str(programs / "berth"), "keys", "rotate", str(tmp_path / "cookie-keys"))
    account = f'[[service_accounts]]\nname = "ada"\norg = "local"\nkey_sha256 = "{"0" * 64}"\n'
    (tmp_path / "accounts.toml").write_text(account)
    text = (DEPLOY / "compose" / f"{service}.toml").read_text()
    file = tmp_path / f"{service}.toml"
    file.write_text(text.replace("/etc/berth", str(tmp_path)))
    kube.run(str(programs / service), "--config", str(file), "--check-config")


@pytest.mark.parametrize("service", SERVICES)
def test_every_file_of_the_configuration_is_mounted(compose: dict[str, Any], service: str) -> None:
    mounted = {}
    for volume in compose["services"][service]["volumes"]:
        source, path, _ = volume.split(":")
        mounted[path] = source
    assert set(compose["services"][service]["command"]) - {"--config"} <= set(mounted)
    configuration = tomllib.loads((DEPLOY / "compose" / f"{service}.toml").read_text())
    assert {text for text in strings(configuration) if text.startswith("/etc/berth")} <= set(mounted)
    for source in mounted.values():
        assert (DEPLOY / source).is_file() or source.startswith("./compose/secrets/"), source


def test_addresses_are_those_of_the_services(compose: dict[str, Any]) -> None:
    own = {name: service["networks"] for name, service in compose["services"].items()}
    addresses = {name: networks["control"]["ipv4_address"] for name, networks in own.items() if "control" in networks}
    for service in SERVICES:
        configuration = tomllib.loads((DEPLOY / "compose" / f"{service}.toml").read_text())
        named = {text for text in strings(configuration) if "172." in text}
        assert all(any(address in text for address in addresses.values()) for text in named), named
        for listener in configuration["listen"].values():
            host = listener.get("address", "").rpartition(":")[0] if isinstance(listener, dict) else ""
            assert host in ("", "0.0.0.0", addresses[service]), (service, listener)


def test_podman_starts_it_and_a_query_runs() -> None:
    script = Path(__file__).resolve().parents[1] / "compose.sh"
    output = kube.run(str(script), os.environ["BERTH_IMAGES"], os.environ["BERTH_LOCAL_IMAGES"], timeout=300)
    found = [line for line in output.splitlines() if line.startswith(("sum ", "console: ", "after "))]
    print(found)
    assert found[0].startswith("sum 499500 ") and found[1:] == ["console: active", "after down and up: active"], output


def test_no_port_is_published_beyond_loopback(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)
