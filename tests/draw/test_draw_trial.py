"""The race between ways to compute a model's layers: every way runs, the result is remembered, nothing is run twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from draw_samples import HARDWARE, plan_for, request_for

from sdcli.asking import planning, probing
from sdcli.draw import local, packed, trial
from sdcli.machine import memories
from sdcli.machine.hardware import Hardware, Trial
from sdcli.models import resolve
from sdcli.plan.planner import make_plan
from sdcli.plan.techniques import execution
from sdcli.plan.workload import AttentionShape, LayerShape, Workload

CONVOLUTION = LayerShape(inward=32, outward=64, kernel=3, size=(8, 8), images=2)
PRODUCT = LayerShape(inward=32, outward=64, kernel=0, size=(64,), images=2)
WORK = Workload(
    attentions=((AttentionShape(heads=4, keys=512, width=16), 3), (AttentionShape(heads=4, keys=256, width=16), 1)),
    layers=((CONVOLUTION, 4), (PRODUCT, 2)),
    macs=2 * (4 * CONVOLUTION.macs + 2 * PRODUCT.macs),
)


def test_every_way_is_tried_and_blocks_are_named_by_their_keys() -> None:
    found = trial.tried(WORK, "bf16")
    packs_bf16 = any(name in HARDWARE.isa for name in execution.PACKS_BF16)
    assert found.attention.keys() == {"fused", "blocked"}
    assert found.execution.keys() == ({"eager", "packed"} if packs_bf16 else set())
    assert all(seconds > 0 for seconds in (*found.attention.values(), *found.execution.values()))
    assert {block.keys for block in found.blocks} <= {512, 256}
    assert all(block.queries in trial.QUERIES for block in found.blocks)


def test_in_fp32_there_is_nothing_to_try_of_attention_and_every_cpu_packs_layers() -> None:
    found = trial.tried(WORK, "fp32")
    assert found.attention == {} and found.execution.keys() == {"eager", "packed"}


def test_times_add_up_over_calls_and_over_the_work_that_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"128": 0.5, "packed": 0.25}
    monkeypatch.setattr(trial, "_raced", lambda race, end: {name: times.get(name, 1.0) for name in race})
    found = trial.tried(WORK, "bf16")
    # four heads, two at once: two calls for each of the four attentions
    assert found.attention == {"fused": 8.0, "blocked": 4.0}
    assert [(block.keys, block.queries) for block in found.blocks] == [(256, 128), (512, 128)]
    layers = trial.tried(WORK, "fp32").execution
    assert layers == {"eager": 12.0, "packed": 3.0}  # six layers, twice their work in all


def test_guidance_is_tried_at_once_and_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.tried(WORK, "fp32").guidance == {}, "there is one side only"
    found = trial.tried(WORK, "fp32", (), 2).guidance
    assert found.keys() == {"batched", "in-turn"} and all(seconds > 0 for seconds in found.values())
    monkeypatch.setattr(trial, "_raced", lambda race, end: {name: 0.4 if name == "one" else 1.0 for name in race})
    assert trial.tried(WORK, "fp32", (), 2).guidance == {"batched": 6.0, "in-turn": pytest.approx(4.8)}


def test_where_cores_are_of_two_kinds_the_faster_number_of_threads_is_set_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    try:
        assert trial.tried(WORK, "fp32", (2, 1)).threads in (1, 2)  # whichever it is on this machine
        monkeypatch.setattr(trial, "_timed", lambda call: (call(), 1.0 / torch.get_num_threads())[1])
        assert trial.tried(WORK, "fp32", (1, 2)).threads == 2 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert trial.tried(WORK, "fp32").threads == 0, "cores of one kind: nothing to try"


def test_a_plan_after_the_trial_draws_with_the_threads_that_it_found(tiny_folders: dict[str, Path]) -> None:
    model = resolve.at(tiny_folders["sd15"])
    hybrid = replace(HARDWARE, threads=6, fast_threads=2)
    assert make_plan(request_for(), model, hybrid, {}).setup.threads == 6
    tried = replace(hybrid, trial=Trial(dtype="fp32", threads=2))
    assert make_plan(request_for(), model, tried, {}).setup.threads == 2


def test_where_time_is_over_the_lighter_layers_count_as_the_heaviest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", -1.0)
    monkeypatch.setattr(trial, "_raced", lambda race, end: dict.fromkeys(race, 1.0))
    found = trial.tried(WORK, "fp32").execution
    assert found["eager"] == found["packed"] == pytest.approx(4 * WORK.macs / (4 * CONVOLUTION.macs))


def test_where_blocks_are_slower_the_best_of_them_still_has_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_raced", lambda race, end: {name: 1.0 + (name != "fused") for name in race})
    found = trial.tried(WORK, "bf16")
    assert found.blocks == () and found.attention == {"fused": 8.0, "blocked": 16.0}


def test_a_torch_that_cannot_pack_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed.Linear, "__init__", missing)
    assert trial.tried(WORK, "bf16").execution == {}


def test_threads_are_what_they_were(tiny_folders: dict[str, Path]) -> None:
    plan, before = plan_for(tiny_folders["sd15"]), torch.get_num_threads()
    local.tried(replace(plan, setup=replace(plan.setup, threads=before + 1)), WORK, "bf16")
    assert torch.get_num_threads() == before


def test_a_model_is_tried_once_on_this_machine(tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for(tiny_folders["sd15"])
    question = probing.question(HARDWARE, plan.model, plan.jobs, request_for())
    assert question is not None and question.dtype == "bf16"
    assert probing.remembered(HARDWARE, question).trial is None
    found, _ = probing.tried(plan, question)
    assert found.trial is not None and found.trial.dtype == "bf16"
    assert probing.remembered(HARDWARE, question) == found


@pytest.mark.parametrize(
    ("place", "pins"),
    [
        (replace(HARDWARE, device="cuda:0"), {}),
        (replace(HARDWARE, source="as-if"), {}),
        (HARDWARE, {"attention": "fused", "execution": "eager"}),
    ],
)
def test_nothing_is_tried_where_it_would_decide_nothing(
    place: Hardware, pins: dict[str, str], tiny_folders: dict[str, Path]
) -> None:
    plan = plan_for(tiny_folders["sd15"])
    assert probing.question(place, plan.model, plan.jobs, request_for(pins=pins)) is None
    assert probing.remembered(place, None) is place


def test_generate_tries_a_model_once_and_plan_never(
    tiny_folders: dict[str, Path], own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"words": ("a cat",), "model": str(tiny_folders["sd15"])}
    assert planning.plan_for(asked, "plan").plan.hardware.trial is None
    drawn = planning.plan_for(asked, "generate").plan.hardware.trial
    assert drawn is not None
    monkeypatch.setattr(local, "tried", None)  # a second trial would fail
    assert planning.plan_for(asked, "generate").plan.hardware.trial == drawn
    assert planning.plan_for(asked, "plan").plan.hardware.trial == drawn


def test_a_damaged_memory_of_a_trial_counts_as_none(own_folders: Path) -> None:
    memories.store("trials").update("trial\nmachine\nwork", lambda old: {"dtype": 3})
    assert memories.trial("machine", "work") is None
