"""`sdcli generate --shard`: several runs, on one machine or on many, draw together what one would."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import pytest
from cli_run import sdcli

from scripts import make_checkpoint
from sdcli.record import found_runs, runs
from sdcli.record.runs import JOURNAL

FAKE = ("--engine", "fake", "--steps", "2", "--size", "64x64", "--no-show")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path / "home"))
    return tmp_path


def hashes(folder: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).glob("*.png")}


def pixels(folder: str) -> dict[str, str]:
    found = {}
    for records in found_runs.found([Path(folder)]):
        found |= {intent.file: intent.pixel_sha256 for intent in runs.read(records).intents.values()}
    return found


def test_shards_draw_into_one_folder_what_one_run_would(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_checkpoint.write_folder(tmp_path / "tiny", "sd15", tiny=True)
    asked = ("a cat", "two dogs", "-m", "./tiny", "--seed", "1..3", "--steps", "1", "--size", "64x64", "--no-show")
    asked = (*asked, "--batch-size", "2", "--device", "cpu", "-q")
    assert sdcli(capfd, "generate", *asked, "-o", "one").code == 0
    for number in (3, 1, 2):
        assert sdcli(capfd, "generate", *asked, "-o", "shared", "--shard", f"{number}/3").code == 0
    assert len(pixels("one")) == 6 and pixels("shared") == pixels("one")


def test_shards_of_prompts_from_stdin_name_images_as_one_run_would(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("generate", "--prompts", "-", *FAKE, "--seed", "7", "-n", "2", "-q")
    listed = "".join(f"cat {number}\n" for number in range(5))
    for words in (("-o", "one"), *(("-o", "shared", "--shard", f"{number}/4") for number in range(1, 5))):
        monkeypatch.setattr(sys, "stdin", io.StringIO(listed))
        assert sdcli(capfd, *asked, *words).code == 0
    assert hashes("one").keys() == hashes("shared").keys() and pixels("one") == pixels("shared")


def test_a_shard_that_was_killed_is_resumed_alone(capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("generate", "a cat", *FAKE, "--seed", "1..6", "-q", "-o", "out", "--shard", "2/2")
    assert sdcli(capfd, *asked).code == 0
    (records,) = found_runs.found([Path("out")])
    assert records.name.endswith("-2-of-2")
    before = hashes("out")
    lines = (records / JOURNAL).read_bytes().splitlines(keepends=True)
    (records / JOURNAL).write_bytes(b"".join(lines[:3]))  # one image is done
    for name in sorted(before)[1:]:
        (Path("out") / name).unlink()
    assert sdcli(capfd, "resume", str(records), "--engine", "fake", "-q").code == 0
    assert hashes("out").keys() == before.keys() == {f"{n:04d}-a-cat-{n}.png" for n in (2, 4, 6)}
    assert str(runs.read(records).plan.request.shard) == "2/2"
    complete = sdcli(capfd, "resume", str(records), "--engine", "fake")
    assert complete.code == 0 and "is complete: 3 of 3" in complete.err


def test_more_shards_than_images_are_done_at_once_with_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    empty = sdcli(capfd, "generate", "a cat", *FAKE, "--seed", "1", "--shard", "5/5", "--json")
    assert empty.code == 0 and empty.json["status"] == "done" and empty.json["images"] == []


def test_a_shard_is_refused_where_it_would_not_fit_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    without = sdcli(capfd, "generate", "a cat", *FAKE, "--shard", "1/2")
    assert without.code == 2 and "--shard needs a seed" in without.err and "--shard 1/2 --seed 1" in without.err
    one = sdcli(capfd, "generate", "a cat", *FAKE, "--seed", "1..2", "--shard", "1/2", "-o", "cat.png")
    assert one.code == 2 and "names one file" in one.err


def test_a_plan_says_which_share_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    shown = sdcli(capfd, "plan", "a cat", "--seed", "1..9", "--shard", "2/4")
    assert shown.code == 0 and "shard 2 of 4: 2 of 9 images" in shown.out
