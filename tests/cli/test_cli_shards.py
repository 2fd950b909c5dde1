"""`sdcli generate --shard`: several runs, on one machine or on many, draw together what one would."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from cli_run import sdcli

from scripts import make_checkpoint
from sdcli.record import found_runs, runs
from sdcli.record import report as reports
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
    (whole,) = [runs.read(records).plan.jobs for records in found_runs.found([Path("one")])]
    shards = [str(records) for records in found_runs.found([Path("shared")])]
    for some in (shards[1:], shards):
        merged = sdcli(capfd, "runs", "merge", *some)
        assert merged.code == (0 if some == shards else 5)
        records = Path(merged.out.splitlines()[-1])
        first = json.loads((records / JOURNAL).read_bytes().splitlines()[0])
        assert len(first["plan"]["jobs"]) == 1  # the others have lines of their own, of which there may be millions
        jobs = runs.read(records).plan.jobs
        assert set(jobs) < set(whole) if some != shards else jobs == whole
    complete = sdcli(capfd, "resume", str(records), "--engine", "fake")
    assert complete.code == 0 and "is complete: 10 of 10" in complete.err


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


# --- putting them together


def drawn(capfd: pytest.CaptureFixture[str], *numbers: int, of: int = 3, folder: str = "out") -> list[str]:
    """The records of these shards of seven images."""
    asked = ("generate", "a cat", *FAKE, "--seed", "1..7", "-q")
    for number in numbers:
        assert sdcli(capfd, *asked, "-o", folder, "--shard", f"{number}/{of}").code == 0
    return sorted(map(str, found_runs.found([Path(folder)])), key=lambda path: path.rpartition("/")[2].split("-")[3])


def test_merged_shards_are_the_run_that_one_would_have_been(capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "generate", "a cat", *FAKE, "--seed", "1..7", "-q", "-o", "one").code == 0
    merged = sdcli(capfd, "runs", "merge", *drawn(capfd, 1, 2, 3), "--json")
    assert merged.code == 0 and merged.json["status"] == "done"
    (alone,) = found_runs.found([Path("one")])
    records = Path("out/runs") / merged.json["run"]
    before, after = runs.read(alone), runs.read(records)
    assert after.plan.jobs == before.plan.jobs and after.plan.batches == before.plan.batches
    assert {one.index: one.pixel_sha256 for one in after.intents.values()} == {
        one.index: one.pixel_sha256 for one in before.intents.values()
    }
    assert [one.batch for _, one in sorted(after.intents.items())] == list(range(7))
    report = reports.from_json(json.loads((records / "report.json").read_text()))
    alone_report = reports.from_json(json.loads((alone / "report.json").read_text()))
    assert [(one.index, one.job, one.tokens, one.pixel_sha256) for one in report.images] == [
        (one.index, one.job, one.tokens, one.pixel_sha256) for one in alone_report.images
    ]
    assert [(one.name, one.images) for one in report.workers] == [("1/3", 3), ("2/3", 2), ("3/3", 2)]
    complete = sdcli(capfd, "resume", str(records), "--engine", "fake")
    assert complete.code == 0 and "is complete: 7 of 7" in complete.err


def test_merging_tells_which_shards_and_images_are_missing(capfd: pytest.CaptureFixture[str]) -> None:
    one, three = drawn(capfd, 1, 3)
    (Path("out") / "0004-a-cat-4.png").unlink()
    merged = sdcli(capfd, "runs", "merge", three, one)
    assert merged.code == 5
    said = " ".join(merged.err.split())
    assert "4 of 5 images" in said and f"shard 1/3: 1 image missing, sdcli resume {one}" in said
    assert "shard 2 of 3 is missing, 2 images" in said and "--shard 2/3" in said
    assert sdcli(capfd, "resume", merged.out.strip(), "--engine", "fake", "-q").code == 0
    assert hashes("out").keys() == {f"{n:04d}-a-cat-{n}.png" for n in (1, 3, 4, 6, 7)}


def test_images_of_other_folders_are_copied_and_none_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    records = [*drawn(capfd, 1, folder="here"), *drawn(capfd, 2, folder="there"), *drawn(capfd, 3, folder="there")]
    refused = sdcli(capfd, "runs", "merge", *dict.fromkeys(records))
    assert refused.code == 2 and "lie in 2 folders" in refused.err
    Path("all").mkdir()
    (Path("all") / "0002-a-cat-2.png").write_bytes(b"mine")
    for _ in range(2):  # again, with what was copied there already
        merged = sdcli(capfd, "runs", "merge", *dict.fromkeys(records), "-o", "all")
        assert merged.code == 0, merged.err
    assert (Path("all") / "0002-a-cat-2.png").read_bytes() == b"mine"
    files = {intent.file for intent in runs.read(Path(merged.out.strip())).intents.values()}
    assert files <= set(hashes("all")) and len(files) == 7 and "0002-a-cat-2-2.png" in files


def test_runs_that_are_no_shards_of_one_list_are_not_merged(capfd: pytest.CaptureFixture[str]) -> None:
    (one,) = drawn(capfd, 1)
    for words, said in (
        (("a dog", "--seed", "1..7", "--shard", "2/3"), "prompts is"),
        (("a cat", "--seed", "1..7", "--shard", "2/3", "--guidance", "3"), "guidance is"),
        (("a cat", "--seed", "1..7", "--shard", "2/4"), "shared out in 3, the other in 4"),
        (("a cat", "--seed", "1..7"), "is no shard"),
    ):
        assert sdcli(capfd, "generate", *words, *FAKE, "-q", "-o", "other").code == 0
        newest = max(map(str, found_runs.found([Path("other")])))
        refused = sdcli(capfd, "runs", "merge", one, newest)
        assert refused.code == 2 and said in refused.err, refused.err
        shutil.rmtree("other")
