"""What torch and OpenMP read from the environment when they are imported."""

from __future__ import annotations

import os

import pytest

from sdcli.draw import local
from sdcli.machine import processor

SETTINGS = ("THP_MEM_ALLOC_ENABLE", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


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
    assert {name: os.environ.get(name) for name in SETTINGS} == {
        "THP_MEM_ALLOC_ENABLE": "1", "GOMP_SPINCOUNT": spins, "OMP_WAIT_POLICY": None, "KMP_BLOCKTIME": None,
    }  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS[1:])
def test_what_the_user_set_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    local.settle(2)
    assert os.environ[name] == "7" and os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    assert not any(other in os.environ for other in SETTINGS[1:] if other != name)
