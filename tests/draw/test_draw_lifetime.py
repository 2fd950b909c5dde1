"""An engine over several runs: what stays loaded, what it frees, and the same events from the fake engine."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from draw_samples import events_of, plan_for

from sdcli.draw import fake, local
from sdcli.draw.engines import engine
from sdcli.errors import Bug
from sdcli.events import Decoded, Encoded, Event, Loaded, Step
from sdcli.machine import memory
from sdcli.plan import batches
from sdcli.plan.plan import Plan


def pixels(events: Iterator[Event]) -> list[bytes]:
    return [event.pixels for event in events if isinstance(event, Decoded)]


def loads(events: list[Event]) -> list[str]:
    return [event.component for event in events if isinstance(event, Loaded)]


def test_what_is_loaded_stays_while_model_and_setup_do(tiny_folders: dict[str, Path]) -> None:
    plan = plan_for(tiny_folders["sd15"])
    other = plan_for(tiny_folders["sd15"], prompts=("a dog",), seeds=(3,), steps=2, width=96)
    alone = [pixels(local.run(one)) for one in (plan, other)]
    with engine() as drawing:
        first, second = list(drawing.run(plan)), list(drawing.run(other))
        assert loads(first) == ["text_encoder", "unet", "vae"] and loads(second) == []
        assert [pixels(iter(first)), pixels(iter(second))] == alone
        changed = list(drawing.run(replace(other, setup=replace(other.setup, guidance="in-turn"))))
        assert loads(changed) == ["text_encoder", "unet", "vae"]
        elsewhere = list(drawing.run(plan_for(tiny_folders["sdxl"])))
        assert "text_encoder_2" in loads(elsewhere)
    again = list(local.run(plan))
    assert pixels(iter(again)) == alone[0]


def test_a_prompt_that_was_encoded_is_not_encoded_again_and_drops_nothing(tiny_folders: dict[str, Path]) -> None:
    asked = plan_for(tiny_folders["sdxl"])
    plan = replace(asked, setup=replace(asked.setup, placement="drop-encoders"))
    with engine() as drawing:
        list(drawing.run(plan))
        assert loads(list(drawing.run(plan))) == []
        new = plan_for(tiny_folders["sdxl"], prompts=("a dog",))
        encoders = ["text_encoder", "text_encoder_2"]
        assert loads(list(drawing.run(replace(new, setup=plan.setup)))) == [*encoders, "unet", "vae"]


def test_a_run_that_is_closed_early_leaves_the_model_ready_for_the_next(tiny_folders: dict[str, Path]) -> None:
    plan = plan_for(tiny_folders["sd15"])
    with engine() as drawing:
        running = drawing.run(plan)
        while not isinstance(next(running), Step):
            pass
        running.close()  # type: ignore[attr-defined]
        events = list(drawing.run(plan))
        assert loads(events) == [] and pixels(iter(events)) == pixels(local.run(plan))


def test_a_run_that_failed_frees_all_memory_and_the_next_one_draws(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(tiny_folders["sd15"])
    with engine() as drawing:
        with monkeypatch.context() as patched:
            patched.setattr(UNet2DConditionModel, "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                list(drawing.run(plan))
        events = list(drawing.run(plan))
        assert loads(events) == ["text_encoder", "unet", "vae"] and len(pixels(iter(events))) == 1


def test_its_own_memory_is_free_for_the_next_plan(tiny_folders: dict[str, Path]) -> None:
    plan = plan_for(tiny_folders["sd15"])
    busy = replace(plan.hardware, free=plan.hardware.total // 2, ram_free=plan.hardware.total // 2)
    with engine() as drawing:
        assert drawing.without_own(busy) == busy
        list(drawing.run(plan))
        held = memory.resident()
        if held is None:
            pytest.skip("this system does not say what a process holds")
        free = drawing.without_own(busy)
        assert free.free == free.ram_free and abs(free.free - busy.free - held) < 64 << 20
        full = replace(plan.hardware, free=plan.hardware.total, ram_free=plan.hardware.ram_total)
        assert drawing.without_own(full) == full  # never more than there is
    assert drawing.without_own(busy) == busy


def test_a_closed_engine_leaves_the_process_as_it_was(tiny_folders: dict[str, Path]) -> None:
    plan = plan_for(tiny_folders["sd15"], steps=1)
    names = ("DIFFUSERS_VERBOSITY", "TOKENIZERS_PARALLELISM", "OPENBLAS_NUM_THREADS", "HF_HUB_DISABLE_TELEMETRY")
    for name in names:
        os.environ.pop(name, None)
    os.environ["TRANSFORMERS_VERBOSITY"] = "info"

    def state() -> list[Any]:
        told = {name: value for name, value in os.environ.items() if name in (*names, "TRANSFORMERS_VERBOSITY")}
        return [told, torch.get_num_threads(), list(warnings.filters), gc.get_threshold(), gc.get_freeze_count()]

    before = state()
    for _ in range(2):
        with engine() as drawing:
            list(drawing.run(replace(plan, setup=replace(plan.setup, threads=2))))
            assert torch.get_num_threads() == 2 and os.environ["TRANSFORMERS_VERBOSITY"] == "error"
        assert state() == before
    del os.environ["TRANSFORMERS_VERBOSITY"]


def test_an_illegal_setup_is_not_drawn(tiny_folders: dict[str, Path]) -> None:
    plan = plan_for(tiny_folders["sd15"])
    with pytest.raises(Bug, match="nowhere to offload"):
        events_of(replace(plan, setup=replace(plan.setup, placement="model-offload")))


def test_gpus_are_told_apart_by_their_uuids() -> None:
    planned = "GPU-2f3e5a10-aaaa-bbbb-cccc-1234567890ab"
    assert not local.is_another_gpu(planned, "2f3e5a10-aaaa-bbbb-cccc-1234567890ab")
    assert local.is_another_gpu(planned, "99995a10-aaaa-bbbb-cccc-1234567890ab")
    assert not local.is_another_gpu(None, "2f3e5a10")  # unknown on one side: nothing is claimed
    assert not local.is_another_gpu(planned, "")
    assert not local.is_another_gpu("MIG-2f3e5a10", "99995a10")


PRINTS = """
import sys
class Prints:
    def find_spec(self, name, *rest):
        if name.startswith(("huggingface_hub", "diffusers.models")): print("Error importing", name)
sys.meta_path.insert(0, Prints())
sys.path.insert(0, sys.argv[1])
import pickle
from sdcli.draw.engines import engine
with engine() as drawing:
    for event in drawing.run(pickle.load(sys.stdin.buffer)): pass
print("a result")
"""


def test_what_a_library_prints_while_it_is_imported_is_not_among_the_results(tiny_folders: dict[str, Path]) -> None:
    plan = pickle.dumps(plan_for(tiny_folders["sd15"], steps=1))
    command = [sys.executable, "-c", PRINTS, str(Path(__file__).resolve().parents[2])]
    done = subprocess.run(command, input=plan, capture_output=True, check=True)
    assert done.stdout.splitlines() == [b"a result"]


# --- the engine without torch


def skeleton(events: Iterator[Event]) -> list[tuple[Any, ...]]:
    """Everything in a stream except measurements: kind, stage or phase, batch, image, step, component, tokens."""
    keys = ("stage", "phase", "batch", "index", "step", "of", "component", "tokens", "chunks")
    return [(type(event).__name__, *[getattr(event, key, None) for key in keys]) for event in events]


STREAMS: dict[str, dict[str, Any]] = {
    "two windows": {"prompts": ("a", "b", "a"), "seeds": (1, 2)},
    "batches of two": {"prompts": ("a", "b " * 90, "c"), "batch_size": 2, "negative_prompt": "x"},
    "a strip": {"filmstrip": 2, "preview_every": 3, "sampler": "Heun"},
    "alone": {"seeds": (1, 2), "batch_size": 2, "batch_invariant": True, "guidance": 1.0},
}


@pytest.mark.parametrize("placement", ["resident", "drop-encoders", "disk"])
@pytest.mark.parametrize("case", STREAMS)
def test_the_fake_engines_events_are_the_real_ones_in_their_order(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, case: str, placement: str
) -> None:
    monkeypatch.setattr(batches, "WINDOW", 2)
    asked = plan_for(tiny_folders["sdxl"], **STREAMS[case])
    plan = replace(asked, setup=replace(asked.setup, placement=placement))
    assert skeleton(fake.run(plan)) == skeleton(local.run(plan))


def test_engines_are_known_by_name() -> None:
    for name in ("local", "fake"):
        with engine(name) as made:
            assert hasattr(made, "run")


def test_encoded_says_how_long_the_longest_prompt_is(tiny_folders: dict[str, Path]) -> None:
    plan: Plan = plan_for(tiny_folders["sd15"], prompts=("a cat", "word " * 100), batch_size=2, steps=1)
    assert [event.chunks for event in events_of(plan, Encoded)] == [2]
