"""What OpenMP reads from the environment when torch is imported."""

from __future__ import annotations

import os

import pytest

from sdcli.draw import local
from sdcli.machine import processor

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("busy", "spins"), [(False, str(local.SPINS)), (True, "0")])
def test_threads_wait_without_spinning_where_others_want_the_cores(
    busy: bool, spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "busy", lambda threads: busy)
    local.settle(2)
    assert {name: os.environ[name] for name in SETTINGS if name in os.environ} == {"GOMP_SPINCOUNT": spins}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_user_set_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    local.settle(2)
    assert {name: os.environ[name] for name in SETTINGS if name in os.environ} == {name: "7"}
