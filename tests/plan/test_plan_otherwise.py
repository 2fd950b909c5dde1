"""What else an image may have been drawn with: one thing at a time, and a bounded number of them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from making import asking, known_model, processor

from sdcli.plan.otherwise import MOST, otherwise
from sdcli.plan.plan import Plan, Setup
from sdcli.plan.planner import make_plan
from sdcli.request.request import Request


def plan_of(request: Request) -> Plan:
    return make_plan(request, known_model("sd15"), processor(32), {})


@pytest.mark.parametrize("batch_size", [1, 2])
def test_each_is_the_plan_but_for_what_it_names(batch_size: int) -> None:
    plan = plan_of(asking("sd15", prompts=("a (cat:1.2)",), seeds=(1, 2), num_images=2, batch_size=batch_size))
    every = otherwise(plan)
    assert 8 <= len(every) <= MOST and len({(one.field, one.choice) for one in every}) == len(every)
    for one in every:
        where, _, slot = one.field.rpartition(".")
        before = plan.setup if where else plan.jobs[0]
        after = one.plan.setup if where else one.plan.jobs[0]
        assert (str(getattr(before, slot)), str(getattr(after, slot))) == (one.before, one.choice)
        moved = {each.name for each in fields(before) if getattr(before, each.name) != getattr(after, each.name)}
        assert moved - {"blocks"} == {slot} and one.before != one.choice
        assert one.plan.setup == plan.setup if not where else one.plan.jobs == plan.jobs
    assert every[0].field == "setup.dtype"


def test_what_would_make_no_difference_is_left_out() -> None:
    plain = {one.field for one in otherwise(plan_of(asking("sd15", prompts=("a cat",), guidance=1.0)))}
    assert not plain & {"emphasis", "setup.guidance", "setup.placement"}
    marked = {one.field for one in otherwise(plan_of(asking("sd15", prompts=("a [cat]",), guidance=7.0)))}
    assert {"emphasis", "setup.guidance", "rng", "clip_skip"} <= marked


def test_tiles_larger_than_the_image_are_no_tiles() -> None:
    choices = {one.choice for one in otherwise(plan_of(asking("sd15", width=512, height=512)))}
    assert "tile-256" in choices and "tile-512" not in choices
    other = plan_of(asking("sd15"))
    assert "eager" in {one.choice for one in otherwise(replace(other, setup=Setup(execution="packed")))}
