"""pull, and generate fetching what it draws with: the facts first, the path on stdout, no question asked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_run import sdcli, start

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from fake_hub import FakeHub, Fault, pipeline, repository, safetensors

from sdcli.cli.download import Download, facts, line
from sdcli.models.hub import Offer, Progress, pair_text
from sdcli.models.hub_connection import PIECE
from sdcli.models.hub_files import File

ID, COMMIT = "someone/tiny", "c" * 40
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PINNED = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
FAKE = ("--size", "64x64", "--seed", "1", "--device", "cpu")


def test_pull_shows_what_comes_and_prints_where_it_is(
    server: FakeHub, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = sdcli(capfd, "pull", ID)
    assert done.code == 0, done.err
    where = own_folders / "huggingface/hub/models--someone--tiny/snapshots" / COMMIT
    assert done.out == f"{where}\n" and (where / "model_index.json").is_file()
    first, second = done.err.splitlines()[:2]
    assert first == f"{ID} @ccccccc"
    assert second.startswith("  licence creativeml-openrail-m, open to all · ") and second.endswith(" free")


def test_pull_json_is_one_object(server: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    told = sdcli(capfd, "pull", ID, "--json").json
    assert (told["schema"], told["repository"], told["revision"]) == ("sdcli.pull/1", ID, COMMIT)
    assert told["fetched_bytes"] == told["bytes"] == sum(file["size"] for file in told["files"])
    assert sdcli(capfd, "pull", ID, "--json").json["fetched_bytes"] == 0


def test_an_alias_is_pulled_at_its_pinned_commit_and_then_needs_no_network(
    server: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    first = sdcli(capfd, "pull", "sd15")
    assert first.code == 0 and "CreativeML OpenRAIL-M" in first.err
    assert all(f"/{PINNED}" in path for path in server.paths("hub"))
    server.log.clear()
    again = sdcli(capfd, "pull", "sd15")
    assert (again.out, server.log) == (first.out, []) and "is already here" in again.err


def test_a_former_name_is_pulled_from_where_it_is_now(server: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    told = sdcli(capfd, "pull", "runwayml/stable-diffusion-v1-5", "--json").json
    assert (told["repository"], told["revision"]) == (SD15, PINNED)


def test_pull_takes_exactly_one_name(capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "pull").code == 2
    assert sdcli(capfd, "pull", "sd15", "sdxl").code == 2


def test_an_unknown_word_is_no_model(server: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "pull", "sd51")
    assert done.code == 3 and "sd15" in done.err and not server.log


@pytest.mark.parametrize("words", [("pull", ID), ("generate", "a cat", "-m", ID), ("generate", "a cat", "-m", "sd15")])
def test_offline_never_connects_and_names_what_is_missing(
    server: FakeHub, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    done = sdcli(capfd, *words, "--offline")
    assert done.code == 3 and words[-1] in done.err and not server.log


def test_the_environment_can_forbid_the_network_too(
    server: FakeHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = sdcli(capfd, "pull", ID)
    assert done.code == 3 and "HF_HUB_OFFLINE" in done.err and not server.log


def test_offline_is_enough_for_what_is_here(server: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    sdcli(capfd, "pull", ID)
    server.log.clear()
    assert sdcli(capfd, "pull", ID, "--offline").code == 0 and not server.log


def test_offline_does_not_complete_a_model_that_lacks_a_file(
    server: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(sdcli(capfd, "pull", ID, "--json").json["path"])
    next((folder / "unet").glob("*.safetensors")).unlink()
    server.log.clear()
    done = sdcli(capfd, "pull", ID, "--offline")
    assert done.code == 3 and f"try: sdcli pull {ID}\n" in done.err and not server.log


def test_generate_fetches_a_hub_id_and_draws_with_it(server: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    report = sdcli(capfd, "generate", "a cat", "-m", ID, "--engine", "fake", "--json", *FAKE).json
    assert report["status"] == "done"
    assert (report["plan"]["model"]["revision"], report["plan"]["model"]["source"]) == (COMMIT, "hub")


def test_generate_fetches_a_known_model_and_plans_again_with_its_true_sizes(
    server: FakeHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli.cli import pull

    asked = pull.plan_with_model({"words": ["a cat", "a dog"], "model": "sd15", "device": "cpu", "size": "64x64"})
    size = sum(part.stored_bytes for part in asked.plan.model.components.values())
    assert asked.plan.model.cached and size < 1_000_000
    assert [job.prompt for job in asked.plan.jobs] == ["a cat", "a dog"]
    assert "2.13 GB" not in capfd.readouterr().err


def test_generate_with_prompts_from_stdin_reads_them_once(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdcli.cli import pull

    monkeypatch.setattr("sys.stdin", io.StringIO("a cat\na dog\n"))
    asked = pull.plan_with_model(
        {"prompts_file": "-", "model": "sd15", "device": "cpu", "size": "64x64", "quiet": True}
    )
    assert [job.prompt for job in asked.plan.jobs] == ["a cat"]
    assert asked.later is not None and [job.prompt for job in asked.later] == ["a dog"]
    assert asked.plan.model.cached


def test_a_mistake_in_the_flags_is_found_before_anything_is_fetched(
    server: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sdcli(capfd, "generate", "a cat", "-m", "sd15", "--size", "65x65").code == 2
    assert sdcli(capfd, "generate", "a cat", "-m", "sd15", "--max-ram", "0.1", "--device", "cpu").code == 4
    assert not server.log


def test_a_partial_snapshot_of_another_tool_is_completed(
    server: FakeHub, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = own_folders / "huggingface/hub/models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    (place / "snapshots" / COMMIT / "unet").mkdir(parents=True)
    (place / "snapshots" / COMMIT / "model_index.json").write_bytes(pipeline()["model_index.json"])
    (place / "snapshots" / COMMIT / "unet/config.json").write_bytes(pipeline()["unet/config.json"])
    done = sdcli(capfd, "generate", "a cat", "-m", ID, "--engine", "fake", *FAKE)
    assert done.code == 0, done.err
    assert (place / "snapshots" / COMMIT / "vae/config.json").is_file()


def test_a_gated_model_says_page_and_command(server: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    server.repositories[ID].gated = "auto"
    done = sdcli(capfd, "pull", ID, "--json")
    assert done.code == 3 and done.json["error"]["type"] == "gated"
    assert f"{server.url}/{ID}" in done.json["error"]["hint"]


@pytest.mark.skipif(os.name == "nt", reason="other signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_has_arrived(server: FakeHub, tmp_path: Path, number: int, code: int) -> None:
    held = safetensors(2_000_000)
    name = hashlib.sha256(held).hexdigest()
    server.repositories[ID] = repository({"large.safetensors": held})
    server.faults = [Fault("whole", only=name), Fault("cut", 2_500_000, only=name), Fault("silence", only=name)]
    kept, silent = 2_500_000 - 2_500_000 % PIECE, threading.Event()
    server.before = lambda asked: silent.set() if asked.host == "cdn" and "range" in asked.headers else None
    child = start("pull", f"{ID}/large.safetensors", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert silent.wait(60)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == code and out == b""
    assert b"will continue" in err
    assert not [asked for asked in server.log if not asked.headers["user-agent"].startswith("sdcli/")]
    assert not [path for path in server.paths("hub") if ID not in path]  # and nothing is told besides
    server.faults.clear()
    server.log.clear()
    again = start("pull", f"{ID}/large.safetensors", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, _ = again.communicate(timeout=60)
    assert Path(out.decode().strip()).read_bytes() == held
    begun = {asked.headers["range"] for asked in server.log if "range" in asked.headers}
    assert begun == {f"bytes={kept}-"}


# --- the display

OFFER = Offer(
    repository=SD15, revision="main", commit=PINNED, family="sd15", licence=None, gated=False,
    files=(File(path="unet/x.safetensors", size=2_130_000_000, sha256="0" * 64),), cache=Path("nowhere"),
)  # fmt: skip


def test_the_facts_are_two_lines_of_80_columns() -> None:
    shown = facts("sd15", OFFER, "CreativeML OpenRAIL-M", 212_000_000_000)
    assert shown == [
        f"sd15: {SD15} @451f4fe",
        "  licence CreativeML OpenRAIL-M, open to all · 2.13 GB to download · 212 GB free",
    ]
    assert max(map(len, shown)) <= 80


def test_the_line_fits_every_width() -> None:
    at = Progress(file="unet/x", part="unet", done=1_420_000_000, total=2_130_000_000)
    for width in range(10, 121):
        assert len("".join(line(at, 38e6, width))) <= width
    assert "".join(line(at, 38e6, 78)).endswith("  1.42/2.13 GB  38 MB/s  0:19")


def test_a_log_gets_a_line_now_and_then_and_every_note() -> None:
    log, seconds = io.StringIO(), iter(range(10_000))
    screen = Download(log, clock=lambda: float(next(seconds)), columns=80)
    for share in range(101):
        note = "the hub asks to wait" if share == 50 else ""
        screen(Progress(file="a", part="unet", done=share * 10**7, total=10**9, note=note))
    lines = log.getvalue().splitlines()
    assert 5 <= len(lines) <= 12 and "  the hub asks to wait" in lines


def test_quiet_says_nothing() -> None:
    log = io.StringIO()
    Download(log, quiet=True)(Progress(file="a", part="unet", done=1, total=1, note="x"))
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(710_000_000, 2_130_000_000, "0.71 of 2.13 GB"), (5, 900, "5 of 900 B"), (1_000_000, 167_000_000, "1 of 167 MB")],
)
def test_two_sizes_share_a_unit(done: int, total: int, text: str) -> None:
    assert pair_text(done, total) == text


def test_the_schema_holds_only_json(server: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    told = sdcli(capfd, "pull", ID, "--json").json
    assert json.loads(json.dumps(told)) == told and all(
        len(file["sha256"] or file["git"]) >= 40 for file in told["files"]
    )
