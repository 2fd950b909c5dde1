"""The modules draw what Setup says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.proofs import setups
from sdcli.models import resolve
from sdcli.plan.plan import Setup
from sdcli.plan.techniques import TECHNIQUES


def covering(folders: dict[str, Path], machine: str) -> list[tuple[str, Setup]]:
    """Some legal setups that together have every pair of choices, of a family and a slot too. Those that take a
    compiler are in test_draw_regional.py."""
    hardware = replace(setups.MACHINES[machine], compiler=False)
    return setups.covering(
        {family: setups.legal_setups(resolve.at(folders[family]), hardware) for family in setups.FAMILIES}
    )


@pytest.mark.parametrize("machine", setups.MACHINES)
def test_what_is_drawn_is_what_setup_says(tiny_folders: dict[str, Path], machine: str) -> None:
    """scripts/prove goes through all."""
    wrong = {}
    for family, setup in covering(tiny_folders, machine):
        plan = setups.plan_of(tiny_folders[family], setups.MACHINES[machine], setup)
        found = list(setups.differences(plan, setups.draw(plan)))
        if found:
            wrong[family, str(setup)] = found
    assert wrong == {}


def test_every_choice_of_every_slot_is_drawn_somewhere_with_every_family(tiny_folders: dict[str, Path]) -> None:
    """Every choice offered is one that draw can carry out."""
    offered = {(technique.slot, choice) for technique in TECHNIQUES for choice in technique.choices}
    offered.remove(("execution", "compile"))  # in test_draw_regional.py
    drawn: dict[str, set[tuple[str, str]]] = {family: set() for family in setups.FAMILIES}
    for machine in setups.MACHINES:
        for family, setup in covering(tiny_folders, machine):
            drawn[family] |= {(technique.slot, technique.of(setup)) for technique in TECHNIQUES}
    assert drawn == dict.fromkeys(setups.FAMILIES, offered)
