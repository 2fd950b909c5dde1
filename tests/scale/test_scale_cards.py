"""Unlike GPUs draw one plan: real drawing, on pretend cards, each in a process of its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from scripts import make_checkpoint
from sdcli.asking import planning
from sdcli.events import Decoded
from sdcli.scale.pool import Pool
from tests.pretend_gpu import device, pretend

SIZES = ("8GiB", "6GiB")


def test_unlike_cards_draw_the_pixels_of_one(tmp_path: Path) -> None:
    make_checkpoint.write_folder(tmp_path / "tiny", "sd15", tiny=True)
    at = {"seeds": "1..3", "steps": "2", "size": "64x64", "pins": ["execution=eager"]}
    asked = {"words": ("a cat",), "model": str(tmp_path / "tiny"), **at}
    with pretend(*map(device, SIZES)):
        plan = planning.plan_for({**asked, "devices": "all"}, "generate").plan
        assert [worker.name for worker in plan.workers] == ["cuda:0", "cuda:1"]
        assert plan.setup.device == "cuda:1"  # the smaller one decides
    large, small = plan.workers
    small = replace(small, setup=replace(small.setup, placement="model-offload"))
    command = (sys.executable, "-P", "-m", "tests.pretend_gpu", ",".join(SIZES), "-m", "sdcli.workers.child")
    drawn = {}
    for own in (large, small):  # one after the other: which of two draws what is chance
        with Pool(command=lambda worker: command) as pool:
            found = [event for event in pool.run(replace(plan, workers=(own,))) if isinstance(event, Decoded)]
        assert {event.worker for event in found} == {own.name} and all(event.setup == own.setup for event in found)
        drawn[own.name] = {event.index: event.pixels for event in found}
    assert drawn["cuda:0"] == drawn["cuda:1"] and len(drawn["cuda:0"]) == 3
