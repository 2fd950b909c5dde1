"""--devices cpu:auto: the CPU's threads are divided among processes as was measured to be fastest here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sdcli.asking import planning, probing
from sdcli.draw import local
from sdcli.machine import memories
from sdcli.plan.plan import Plan
from sdcli.plan.processes import Division, divisions, soonest
from sdcli.request.options import CPU_AUTO

ONE, TWO = Division(1, 2), Division(2, 1)
ASKED: Mapping[str, Any] = {"words": ("a cat",), "steps": "2", "seeds": "1..8", "pins": ["execution=eager"]}


def test_every_division_uses_all_threads_and_has_work_for_each_process() -> None:
    assert [str(one) for one in divisions(8, None)] == ["cpu:1x8", "cpu:2x4", "cpu:4x2", "cpu:8x1"]
    assert divisions(6, 2) == (Division(1, 6), Division(2, 3)) and divisions(7, None) == (
        Division(1, 7),
        Division(7, 1),
    )
    assert divisions(64, None)[-1].processes == 8 and divisions(1, 5) == ((1, 1),)


def test_the_division_that_draws_the_list_soonest_is_chosen_and_says_why() -> None:
    """Of nine images two processes draw five rounds: one of them has nothing to do in the last."""
    assert soonest({ONE: 1.0, TWO: 1.25}, None)[0] == soonest({ONE: 1.0, TWO: 1.25}, 8)[0] == TWO
    assert soonest({ONE: 1.0, TWO: 1.1}, 9)[0] == ONE and soonest({ONE: 1.0, TWO: 1.12}, 9)[0] == TWO
    assert soonest({ONE: 1.0, TWO: 1.0}, 8)[0] == ONE
    because = soonest({ONE: 1.0, TWO: 1.25}, 8)[1]
    assert because.startswith("2 processes of 1 thread take 80% of the time of 1 process of 2 threads")


def planned(command: str = "plan", **asked: Any) -> Plan:
    return planning.plan_for({**ASKED, **asked}, command).plan


def test_what_was_measured_decides_and_before_that_one_process_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path))
    alone = planned(device="cpu")
    threads = alone.hardware.threads
    untold = planned(devices=CPU_AUTO)
    assert not untold.workers and untold.setup == alone.setup
    work = probing.work_of(alone.model, alone.jobs, alone.request)
    possible = divisions(threads, 8)
    for best in possible:
        calls = {str(one): 1.0 + (one == best) for one in possible}
        memories.remember_side_by_side(memories.machine_of(alone.hardware), f"{work.key} {alone.setup.dtype}", calls)
        found = planned(devices=CPU_AUTO)
        named = planned(devices=str(best)) if best.processes > 1 else alone
        assert [worker.setup for worker in found.workers] == [worker.setup for worker in named.workers]
        assert (found.setup, found.request.devices) == (named.setup, named.request.devices)
        (said,) = [one.message for one in found.warnings if one.code == "processes"]
        assert said.startswith(f"{best}: ")


def test_processes_are_measured_beside_each_other() -> None:
    plan = planned(device="cpu")
    work = probing.work_of(plan.model, plan.jobs, plan.request)
    few = work._replace(layers=work.layers[:2])
    found = local.side_by_side(few, "fp32", [Division(1, 1), Division(2, 1)])
    assert list(found) == [Division(1, 1), Division(2, 1)] and all(calls > 0 for calls in found.values())
