"""--keep-steps: what is kept of a step is all that another process needs to go on, in every sampler and mode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from draw_samples import plan_for
from PIL import Image

from sdcli.draw import local
from sdcli.events import Decoded, Event, KeptStep, Step, Warned
from sdcli.images import read
from sdcli.plan.plan import Plan
from sdcli.request import samplers
from sdcli.request.jobs import make_jobs

SAMPLERS = [sampler.name for sampler in samplers.EVERY if not sampler.edm]


def of(events: Sequence[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def pixels(events: Sequence[Event]) -> list[bytes]:
    return [event.pixels for event in of(events, Decoded)]


def gone_on(plan: Plan, state: bytes) -> list[Event]:
    with local.Engine() as engine:  # nothing of the first process is left
        return list(engine.run(plan, None, {0: state}))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_goes_on_in_the_middle_with_the_same_pixels(tiny_folders: dict[str, Path], sampler: str) -> None:
    plan = plan_for(tiny_folders["sd15"], sampler=sampler, keep_steps=True)
    whole = list(local.run(plan))
    kept, steps = of(whole, KeptStep), len(of(whole, Step))
    assert [event.step for event in kept] == list(range(1, steps + 1))
    middle = kept[steps // 2 - 1]
    rest = gone_on(plan, middle.state)
    assert len(of(rest, Step)) == steps - middle.step
    assert pixels(rest) == pixels(whole)


@pytest.mark.parametrize("mode", ["image", "mask", "second pass", "batch"])
def test_what_an_image_starts_from_and_what_follows_stay(
    tiny_folders: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "photo.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(tmp_path / "mask.png")
    photo = {"image": (read.look(tmp_path / "photo.png"),), "strength": 0.9}
    asked: dict[str, dict[str, Any]] = {
        "image": photo,
        "mask": photo | {"mask": read.look(tmp_path / "mask.png")},
        "second pass": {"hires": 2.0},
        "batch": {"seeds": (1, 2), "batch_size": 2},
    }
    plan = plan_for(tiny_folders["sd15"], sampler="DPM++ 2M Karras", keep_steps=True, steps=6, **asked[mode])
    whole = list(local.run(plan))
    kept = of(whole, KeptStep)
    assert len(kept) == plan.jobs[0].unet_calls  # of the first pass
    assert pixels(gone_on(plan, kept[2].state)) == pixels(whole)
    assert pixels(gone_on(plan, kept[-1].state)) == pixels(whole)


def test_what_is_damaged_or_another_image_s_is_told_and_not_used(tiny_folders: dict[str, Path]) -> None:
    plan = plan_for(tiny_folders["sd15"], keep_steps=True, steps=2)
    whole = list(local.run(plan))
    state = of(whole, KeptStep)[0].state
    wide = plan_for(tiny_folders["sd15"], keep_steps=True, steps=2, width=128)
    header = int.from_bytes(state[:8], "little")
    about = json.loads(state[8 : 8 + header])
    text = json.loads(about["__metadata__"]["state"])
    text["scheduler"]["step"] = {"value": 1}  # would stand in the place of the scheduler's own function
    about["__metadata__"]["state"] = json.dumps(text)
    other = json.dumps(about).encode()
    hostile = len(other).to_bytes(8, "little") + other + state[8 + header :]
    with local.Engine() as engine:
        of_another = of(list(engine.run(wide)), KeptStep)[0].state
        for damaged in (b"", state[:-9], b"\x80\x04." + state, hostile, of_another):
            rest = list(engine.run(plan, None, {0: damaged}))
            assert [event.code for event in of(rest, Warned)] == ["kept-step"]
            assert pixels(rest) == pixels(whole) and len(of(rest, Step)) == 2


def test_nothing_is_kept_unless_asked_for(tiny_folders: dict[str, Path]) -> None:
    plan = plan_for(tiny_folders["sd15"], steps=2)
    assert not of(list(local.run(plan)), KeptStep)
    assert make_jobs(replace(plan.request, keep_steps=True)) == plan.jobs  # it is no setting of an image
