"""Memory that runs out in the middle of drawing, injected into the modules' calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.proofs import out_of_memory
from scripts.proofs.out_of_memory import FAILURES, NAMES, PHASE_OF, Bench, Case
from sdcli.draw import local, oom
from sdcli.events import Decoded, Degraded, Event, Step
from sdcli.models import resolve
from sdcli.plan.planner import make_plan
from sdcli.request.request import Request


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What it keeps out of garbage collections stays so: given back, each later one, of other files' tests too, would
    go through all that the libraries have made."""
    return Bench(tmp_path_factory.mktemp("exhausted"))


def test_the_covering_cases_include_every_call_sampler_failure_and_placement(bench: Bench) -> None:
    cases = list(out_of_memory.in_turn(out_of_memory.covering(bench)))
    assert {case.point for case in cases} == set(PHASE_OF)
    assert {case.sampler for case in cases} == set(NAMES)
    assert {case.failure for case in cases} == set(FAILURES)
    assert {case.placement for case in cases} >= set(out_of_memory.PLACEMENTS) - {"resident"}


@pytest.mark.parametrize("family", out_of_memory.FAMILIES)
def test_an_image_survives_running_out_anywhere_or_ends_with_exit_4_and_numbers(bench: Bench, family: str) -> None:
    cases = out_of_memory.in_turn(out_of_memory.covering(bench))
    wrong = {case: bench.wrong(case) for case in cases if case.family == family}
    assert {case: events for case, events in wrong.items() if events} == {}


def test_a_decode_goes_to_tiles_of_512_then_256_then_to_the_cpu_and_no_step_is_drawn_again(bench: Bench) -> None:
    """Each fallback of the decode fails too, until the last; the latents stay."""
    request = Request(
        prompts=("a cat",), seeds=(7,), steps=1, guidance=1.0, width=576, height=576, sampler="Euler",
        pins={"dtype": "fp32"},
    )  # fmt: skip
    made = make_plan(request, resolve.at(bench.folders["sd15"]), out_of_memory.GPU, {})
    plan = out_of_memory.on_the_cpu(made)
    (expected,) = bench.images(plan)
    events: list[Event] = []

    def fail(module: torch.nn.Module, *_: object) -> None:
        if type(module).__name__ == "Decoder" and sum(isinstance(event, Degraded) for event in events) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(fail)
    try:
        for event in local.run(plan):
            events.append(event)
    finally:
        hook.remove()
    falls = [event for event in events if isinstance(event, Degraded)]
    assert [event.after["vae"] for event in falls] == ["tile-512", "tile-256", "cpu"]
    assert {event.phase for event in falls} == {"decode"} and all(event.changes_pixels for event in falls)
    assert [event.step for event in events if isinstance(event, Step)] == [1]
    assert [event.pixels for event in events if isinstance(event, Decoded)] == [expected]  # whole again, on the CPU


@pytest.mark.parametrize("failure", FAILURES)
def test_every_librarys_failure_to_allocate_is_recognised(failure: str) -> None:
    with pytest.raises(Exception) as caught:
        FAILURES[failure]()
    assert oom.is_out_of_memory(caught.value)


def test_noise_drawn_before_memory_ran_out_is_drawn_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generators have advanced by then; the image must not change."""
    plan = bench.plan("sd15", "Euler a")
    expected = bench.images(plan)
    real, calls = torch.randn, [0]

    def randn(*shape: object, **given: object) -> object:
        noise = real(*shape, **given)
        calls[0] += 1
        if calls[0] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return noise

    monkeypatch.setattr(torch, "randn", randn)
    events = list(local.run(plan))
    assert sum(isinstance(event, Degraded) for event in events) == 1
    assert [event.pixels for event in events if isinstance(event, Decoded)] == expected


def test_the_cap_of_torchs_allocator_is_the_limit_without_the_context() -> None:
    gib = 1 << 30
    assert local.share_of(None, 8 * gib, gib // 2) == 1.0
    assert local.share_of(4 * gib, 8 * gib, gib // 2) == pytest.approx(3.5 / 8)
    assert local.share_of(gib // 4, 8 * gib, gib // 2) == 0.0
    assert local.share_of(24 * gib, 8 * gib, gib // 2) == 1.0


def test_only_what_failed_is_named(bench: Bench) -> None:
    """A case in which nothing fails would prove nothing, and is reported."""
    assert bench.wrong(Case("sd15", call=1000)) == ["nothing failed"]
    assert Path(bench.folders["sd15"]).is_dir()
