"""The probe before the first image: once per machine, only where it decides something."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
from draw_samples import HARDWARE

from sdcli.asking import probing
from sdcli.draw import local
from sdcli.machine import memories, packages

PLACE = replace(HARDWARE, dtypes={"fp32": "assumed", "bf16": "assumed", "fp16": "unavailable"})


def test_a_cpu_that_claims_bf16_is_probed_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    probed, seconds = probing.probed(PLACE)
    assert seconds > 0.0
    assert probed.dtypes["bf16"] in ("probed", "unavailable") and probed.dtypes["fp32"] == "probed"
    torch = packages.torch_build()
    assert torch is not None
    kept = memories.probes().get((PLACE.name, PLACE.isa, torch.version))
    assert kept is not None and kept.dtypes == probed.dtypes and kept.ratio["fp32"] == 1.0
    monkeypatch.setattr(local, "probe", None)  # a second trial would fail
    assert probing.probed(PLACE) == (PLACE, 0.0)


@pytest.mark.parametrize(
    "place",
    [
        replace(PLACE, device="cuda:0"),
        replace(PLACE, source="as-if"),
        replace(PLACE, dtypes=dict(PLACE.dtypes) | {"bf16": "unavailable"}),
        HARDWARE,
    ],
)
def test_nothing_is_probed_where_it_would_decide_nothing(monkeypatch: pytest.MonkeyPatch, place: object) -> None:
    monkeypatch.setattr(importlib, "import_module", None)
    assert probing.probed(place) == (place, 0.0)  # type: ignore[arg-type]
