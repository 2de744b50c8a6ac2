"""Fixtures of the tests that need no Berth."""

import os

import pytest

from berth import _credential


@pytest.fixture
def clean_environment(monkeypatch, tmp_path):
    """No setting of this machine: the folder of settings is an empty one."""
    for name in [name for name in os.environ if name.startswith("BERTH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BERTH_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(_credential, "PROJECTED_TOKEN", tmp_path / "no-token")
    monkeypatch.setattr(_credential, "is_interactive", lambda: False)
    return monkeypatch
