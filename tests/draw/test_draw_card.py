"""Full-size models on a pretend GPU that computes nothing: each stage's tensors are the forecast's, to 5 %."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.proofs import card
from scripts.proofs.card import Case
from sdcli.draw import local
from sdcli.events import Memory
from tests.pretend_gpu import Device, allocator, pretend


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    with card.folder_for_models() as folder:
        card.write_models(Path(folder))
        yield Path(folder)


@pytest.mark.parametrize(
    "case",
    [
        Case("sd15", 512, "resident", "same", "whole", 1),
        Case("sd15", 768, "model-offload", "fp8", "tile-512", 4),
        Case("sd15", 512, "drop-encoders", "same", "whole", 1, "like an image"),
        Case("sd15", 512, "group-offload", "same", "tile-256", 1, "steered"),
        *(
            pytest.param(case, marks=pytest.mark.proof)
            for case in (
                Case("sd15", 512, "resident", "same", "whole", 1, "from an image"),
                Case("sd15", 512, "drop-encoders", "same", "tile-512", 1, "twice the image"),
                Case("sd15", 512, "resident", "same", "tile-512", 4, "adapted"),
                Case("sdxl", 1024, "resident", "same", "tile-512", 1, "united"),
                Case("sdxl", 1024, "drop-encoders", "same", "tile-512", 1, card.REFINED),
            )
        ),
    ],
    ids=lambda case: f"{case.shape} {case.setup}",
)
def test_each_stage_takes_what_the_plan_says_and_the_planner_asks_for_enough(models: Path, case: Case) -> None:
    counted = card.count(models, case)
    more = {
        "from an image": {"encode-image"}, "twice the image": {"upscale", "second-pass"},
        "like an image": {"encode-reference"},
        card.REFINED: {"encode-refiner", "refine"},
    }.get(case.mode, set())  # fmt: skip
    assert {stage.name for stage in counted.stages} == {"load", "encode", "denoise", "decode"} | more
    assert [stage for stage in counted.stages if abs(stage.error) > card.GOAL] == []
    assert counted.least <= counted.asked and counted.left == 0


@pytest.mark.parametrize(
    "mode", ["", *(pytest.param(mode, marks=pytest.mark.proof) for mode in ("steered", "adapted"))]
)
def test_a_graph_takes_what_the_plan_says_and_the_planner_asks_for_enough(models: Path, mode: str) -> None:
    plan = card.plan_of(Case("sd15", 512, "resident", "same", "whole", 1, mode), models, execution="graph")
    planned = next(phase.device for phase in plan.footprint.phases if phase.name == "denoise")
    with pretend(Device(total=plan.hardware.total, free=plan.hardware.total), blank=True) as gpu:
        peaks = {event.phase: event.reserved_peak for event in local.run(plan) if isinstance(event, Memory)}
        assert peaks["denoise"] == pytest.approx(planned, rel=card.GOAL)
        assert allocator.least(gpu.allocator().log) <= card.asked_for(plan) and gpu.traffic.launches["replay"] == 1
