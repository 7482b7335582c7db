"""`gptexport doctor`: what this machine can run, and why not."""

from __future__ import annotations

import json

import pytest

from gptexport import doctor
from gptexport_runtime import BackendUnavailableError
from tests.support.cli import Cli


def test_an_unavailable_backend_is_4(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise BackendUnavailableError("no ONNX Runtime")

    monkeypatch.setattr(doctor, "probe_providers", unavailable)
    assert cli("doctor").code == 4


def test_doctor_tries_the_providers(cli: Cli) -> None:
    ran = cli("doctor", "--json")
    data = json.loads(ran.out)
    assert ran.code == 0
    assert data["versions"]["torch"]
    assert data["cores"] >= 1
    assert {p["name"]: p["loads"] for p in data["providers"]}["cpu"] is True
    assert all(p["loads"] or p["reason"] for p in data["providers"])
