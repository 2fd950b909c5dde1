"""The race between ways to compute a model's layers: every way runs, the result is remembered, nothing is run twice."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from draw_samples import HARDWARE, request_for

from sdcli.cli import probing
from sdcli.draw import local, packed, trial
from sdcli.machine import memories
from sdcli.models import resolve
from sdcli.plan.workload import AttentionShape, LayerShape, Workload
from sdcli.request.jobs import make_jobs

WORK = Workload(
    attentions=((AttentionShape(heads=4, keys=512, width=16), 3), (AttentionShape(heads=4, keys=256, width=16), 1)),
    layers=(
        (LayerShape(inward=32, outward=64, kernel=3, size=(8, 8), images=2), 4),
        (LayerShape(inward=32, outward=64, kernel=0, size=(64,), images=2), 2),
    ),
    share=0.5,
)


def test_every_way_is_tried_and_blocks_are_named_by_their_keys() -> None:
    found = trial.tried(WORK, "bf16", 1)
    assert found.attention.keys() == {"fused", "blocked"} and found.execution.keys() == {"eager", "packed"}
    assert all(seconds > 0 for seconds in (*found.attention.values(), *found.execution.values()))
    assert {block.keys for block in found.blocks} <= {512, 256}
    assert all(block.queries in trial.QUERIES for block in found.blocks)


def test_in_fp32_there_is_nothing_to_try_of_attention() -> None:
    assert trial.tried(WORK, "fp32", 1).attention == {}


def test_times_add_up_over_calls_and_over_the_work_that_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"128": 0.5, "packed": 0.25}
    monkeypatch.setattr(trial, "_raced", lambda race, end: {name: times.get(name, 1.0) for name in race})
    found = trial.tried(WORK, "bf16", 2)
    # four heads, two at once: two calls for each of the four attentions
    assert found.attention == {"fused": 8.0, "blocked": 4.0}
    assert [(block.keys, block.queries) for block in found.blocks] == [(256, 128), (512, 128)]
    assert found.execution == {"eager": 12.0, "packed": 3.0}  # six layers, twice their work in all


def test_where_blocks_are_slower_the_best_of_them_still_has_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_raced", lambda race, end: {name: 1.0 + (name != "fused") for name in race})
    found = trial.tried(WORK, "bf16", 2)
    assert found.blocks == () and found.attention == {"fused": 8.0, "blocked": 16.0}


def test_a_torch_that_cannot_pack_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed.Linear, "__init__", missing)
    assert trial.tried(WORK, "bf16", 1).execution == {}


def test_threads_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    trial.tried(WORK, "bf16", before + 1)
    assert torch.get_num_threads() == before


def test_a_model_is_tried_once_on_this_machine_and_by_plans_never(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, job = resolve.at(tiny_folders["sd15"]), make_jobs(request_for())[0]
    assert probing.tried(HARDWARE, model, job, {}, again=False) == (HARDWARE, 0.0)
    first, _ = probing.tried(HARDWARE, model, job, {})
    assert first.trial is not None and first.trial.dtype == "bf16"
    monkeypatch.setattr(local, "tried", None)  # a second trial would fail
    assert probing.tried(HARDWARE, model, job, {}) == (first, 0.0)
    assert probing.tried(HARDWARE, model, job, {}, again=False) == (first, 0.0)


@pytest.mark.parametrize(
    ("place", "pins"),
    [
        (replace(HARDWARE, device="cuda:0"), {}),
        (replace(HARDWARE, source="as-if"), {}),
        (HARDWARE, {"attention": "fused", "execution": "eager"}),
    ],
)
def test_nothing_is_tried_where_it_would_decide_nothing(
    place: object, pins: dict[str, str], tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, job = resolve.at(tiny_folders["sd15"]), make_jobs(request_for())[0]
    monkeypatch.setattr(importlib, "import_module", None)
    assert probing.tried(place, model, job, pins) == (place, 0.0)  # type: ignore[arg-type]


def test_a_damaged_memory_of_a_trial_counts_as_none(own_folders: Path) -> None:
    memories.store("trials").update("trial\nmachine\nwork", lambda old: {"dtype": 3})
    assert memories.trial("machine", "work") is None
