"""Shares of a list: every job in exactly one, whatever the list, with the index it has in the whole list."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.asking import sharing
from sdcli.errors import Usage
from sdcli.models import resolve
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.shards import share
from sdcli.request import jobs, prompt_files
from sdcli.request.prompt_files import Line
from sdcli.request.request import Request, Shard


def every(of: int) -> list[Shard]:
    return [Shard(number=number, of=of) for number in range(1, of + 1)]


@given(st.integers(1, 1000), st.integers(0, 10**6))
def test_every_batch_is_in_exactly_one_shard(of: int, batch: int) -> None:
    assert [shard.takes(batch) for shard in every(of)].count(True) == 1


def request(**fields: object) -> Request:
    asked = Request(prompts=("a cat",), seeds=(1, 2, 3), num_images=3, width=64, height=64, steps=2)
    return replace(asked, **fields)  # type: ignore[arg-type]


def lines(count: int, randomly: random.Random) -> list[Line]:
    """Some with a seed to count from, some with seeds of their own, some with those of the request."""
    seeds = [(), (7,), (5, 9), (1, 2, 3, 4, 5)]
    return [Line(prompt=f"number {number}", id=str(number), seeds=randomly.choice(seeds)) for number in range(count)]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 40, 1000])
def test_shards_of_a_stream_are_the_whole_stream_with_the_same_jobs(of: int) -> None:
    listed = lines(60, random.Random(of))
    whole = list(sharing.later(request(), iter(listed), 3, 2))
    assert [job.index for job in whole] == list(range(3, 3 + len(whole)))
    parts = [list(sharing.later(request(shard=shard), iter(listed), 3, 2)) for shard in every(of)]
    assert sorted((job for part in parts for job in part), key=lambda job: job.index) == whole


def test_jobs_of_a_line_are_counted_as_they_are_made() -> None:
    for asked in (request(), request(seeds=(4,), num_images=1)):
        for line in lines(40, random.Random(1)):
            assert prompt_files.count(asked, line) == len(prompt_files.of_line(asked, line))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Eleven jobs of two sizes, three at once."""
    from scripts import make_checkpoint
    from sdcli.machine import as_if

    folder = tmp_path_factory.mktemp("shelf") / "tiny"
    make_checkpoint.write_folder(folder, "sd15", tiny=True)
    asked = request(batch_size=3, seeds=tuple(range(11)), num_images=11)
    made = [replace(job, width=64 * (1 + job.index % 4 // 3)) for job in jobs.make_jobs(asked)]
    return make_plan(asked, resolve.at(folder), as_if.parse("cpu"), {}, jobs=made)


@pytest.mark.parametrize("of", [1, 2, 3, 4, 9])
def test_shards_of_a_plan_have_whole_batches_and_the_setup_chosen_for_all(whole: Plan, of: int) -> None:
    parts = [share(replace(whole, request=replace(whole.request, shard=shard)), shard) for shard in every(of)]
    assert sorted(batch for part in parts for batch in part.batches) == list(whole.batches)
    assert sorted((job for part in parts for job in part.jobs), key=lambda job: job.index) == list(whole.jobs)
    for part in parts:
        assert part.setup == whole.setup and part.whole == parts[0].whole
        assert [batch for _, batch in part.numbered()] == [
            tuple(whole.jobs[index] for index in batch) for batch in part.batches
        ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("0/8", "--shard 1/8"),
        ("9/8", "--shard 8/8"),
        ("1/0", "--shard 1/8"),
        ("3", "--shard 1/8"),
        ("a/b", "--shard 1/8"),
    ],
)
def test_what_is_no_shard_is_refused_with_one_that_is(text: str, hint: str) -> None:
    with pytest.raises(Usage) as refused:
        jobs.parse_shard(text)
    assert refused.value.hint == hint


def test_a_shard_that_nobody_can_share_seeds_with_is_refused(tmp_path: Path) -> None:
    seeded, unseeded = Line(prompt="a cat", seeds=(1,), where="list:1"), Line(prompt="a dog", where="list:2")
    first, rest = sharing.seeded(seeded, iter([unseeded]))
    assert first is seeded and rest is not None
    with pytest.raises(Usage, match="list:2: --shard needs a seed"):
        list(rest)
    with pytest.raises(Usage, match="--shard needs a seed"):
        sharing.seeded(None, None)
