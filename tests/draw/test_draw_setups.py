"""The modules draw what Setup says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.proofs import setups
from sdcli.models import resolve
from sdcli.plan.techniques import TECHNIQUES


@pytest.mark.parametrize("machine", setups.MACHINES)
@pytest.mark.parametrize("family", setups.FAMILIES)
def test_what_is_drawn_is_what_setup_says(tiny_folders: dict[str, Path], family: str, machine: str) -> None:
    """Some legal setups that together have every pair of choices; scripts/prove goes through all. Those that take a
    compiler are in test_draw_regional.py."""
    hardware, path = replace(setups.MACHINES[machine], compiler=False), tiny_folders[family]
    wrong = {}
    for setup in setups.covering(setups.legal_setups(resolve.at(path), hardware)):
        plan = setups.plan_of(path, hardware, setup)
        found = list(setups.differences(plan, setups.draw(plan)))
        if found:
            wrong[str(setup)] = found
    assert wrong == {}


def test_every_choice_of_every_slot_is_drawn_somewhere(tiny_folders: dict[str, Path]) -> None:
    """Every choice offered is one that draw can carry out."""
    drawn = {("execution", "compile")}  # in test_draw_regional.py
    for hardware in setups.MACHINES.values():
        without = replace(hardware, compiler=False)
        for setup in setups.covering(setups.legal_setups(resolve.at(tiny_folders["sd15"]), without)):
            drawn |= {(technique.slot, technique.of(setup)) for technique in TECHNIQUES}
    assert drawn == {(technique.slot, choice) for technique in TECHNIQUES for choice in technique.choices}
