"""A process with too little address space ends with exit 4, a message and a hint; the sweep is a proof."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.proofs import address_space
from scripts.proofs.address_space import MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not keep to such limits")


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> int:
    """MiB that Python and sdcli's first module take."""
    return address_space.least(tmp_path_factory.mktemp("least"))


@pytest.mark.parametrize(
    ("more", "as_json"),  # MiB
    [
        (4, True), (16, False),
        pytest.param(4, False, marks=pytest.mark.proof), pytest.param(16, True, marks=pytest.mark.proof),
    ],
)  # fmt: skip
def test_hardly_starting_is_exit_4(
    tmp_path: Path, least: int, tiny_folders: dict[str, Path], more: int, as_json: bool
) -> None:
    limit = (least + more) * MIB
    ended = address_space.tried(tiny_folders["sd15"], limit, tmp_path, as_json)
    assert (ended.code, ended.wrong) == (4, ())
    assert ended.said.startswith("out of memory") or " does not fit in " in ended.said


def test_a_limit_below_what_the_plan_needs_is_refused_before_anything_is_loaded(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    ended = address_space.tried(tiny_folders["sd15"], 256 * MIB, tmp_path, as_json=True)
    assert (ended.code, ended.wrong) == (4, ())
    assert "does not fit" in ended.said and "less a safety margin" in ended.said


def test_libraries_that_cannot_be_mapped_are_exit_4(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    """How much it says depends on how much is left to say it with."""
    ended = address_space.tried(tiny_folders["sd15"], 740 * MIB, tmp_path, as_json=False)
    assert (ended.code, ended.wrong) == (4, ())
    assert ended.said.startswith("out of memory")
