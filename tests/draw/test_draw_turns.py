"""A sweep over the weights of a LoRA: one load for each, and the images of single runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_draw_adapters import write_lora

from sdcli.asking import planning
from sdcli.draw import engines
from sdcli.errors import Usage
from sdcli.events import Decoded, Done, Loaded
from sdcli.models import resolve
from sdcli.plan.plan import Plan


def plan_of(folder: Path, ink: Path, /, **flags: Any) -> Plan:
    usual = {
        "words": ("a cat",), "model": str(folder), "steps": "2", "size": "64x64", "seeds": "3", "dtype": "fp32",
        "compile": "off", "pins": ["execution=eager"], "lora": [str(ink)],
    }  # fmt: skip
    return planning.plan_for({**usual, **flags}, "plan").plan


@pytest.fixture
def ink(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    write_lora(tmp_path / "ink.safetensors", resolve.at(tiny_folders["sd15"]), "kohya")
    return tmp_path / "ink.safetensors"


def test_each_weight_is_loaded_once_and_draws_what_a_single_run_does(ink: Path, tiny_folders: dict[str, Path]) -> None:
    folder = tiny_folders["sd15"]
    plan = plan_of(folder, ink, sweep=["steps=2,3", "lora.ink=0..1:0.5"], batch_size="4")
    with engines.engine() as engine:
        events = list(engine.run(plan))
        assert sum(isinstance(event, Loaded) and event.component == "unet" for event in events) == 3
        assert sum(isinstance(event, Done) for event in events) == 1
        decoded = {event.index: event for event in events if isinstance(event, Decoded)}
        for job in plan.jobs:
            weight = job.lora_weights[0].weight
            single = plan_of(folder, ink, steps=str(job.steps), lora=[f"{ink}:{weight:g}"])
            (alone,) = (event for event in engine.run(single) if isinstance(event, Decoded))
            assert alone.pixels == decoded[job.index].pixels
            setup = decoded[job.index].setup
            assert setup is not None and [one.scale for one in setup.adapters] == [weight]
    assert len({event.pixels for event in decoded.values()}) == 6


def test_a_lora_that_the_run_does_not_name_is_added_and_one_that_there_is_not_refused(
    ink: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ink.parent)
    plan = plan_of(tiny_folders["sd15"], ink, lora=[], sweep=["lora.ink.safetensors=1,2"])
    assert {job.lora_weights[0].name for job in plan.jobs} == {"ink"}
    assert [one.name for one in plan.setup.adapters] == ["ink"]
    with pytest.raises(Usage, match="is not a weight"):
        plan_of(tiny_folders["sd15"], ink, sweep=["lora.ink=1,eleven"])
