"""Files that come in: pipes, devices, damage. Each is refused with its own code, a sentence and a way out."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import model_files as make
import pytest
from cli_run import ROOT, Outcome, sdcli

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def refused(done: Outcome, code: int) -> None:
    error, hint = done.err.splitlines()[:2]
    assert (done.code, done.out) == (code, ""), done.err
    assert error.startswith("error: ") and hint.startswith("  try: "), done.err
    assert "Traceback" not in done.err


# --- pipes and devices


@needs_pipes
@pytest.mark.parametrize(
    ("code", "name"),
    [
        (9, "model_index.json"),
        (9, "unet/config.json"),
        (9, "vae/config.json"),
        (9, "scheduler/scheduler_config.json"),
        (9, "unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_pipe_in_a_models_folder_is_refused_at_once(code: int, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    pipe(make.folder(Path("model")) / name)
    refused(sdcli(capfd, "plan", "a cat", "-m", "./model"), code)


@needs_pipes
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, ["inspect-unet", "pipe"]),
        (9, ["inspect-unet", "pipe.json"]),
        (9, ["bench", "compare", "pipe", "pipe"]),
        (9, ["plan", "a cat", "-m", "./pipe.safetensors"]),
        (2, ["plan", "a cat", "--settings-from", "pipe"]),
        (3, ["plan", "a cat", "--lora", "pipe.safetensors"]),
        (3, ["plan", "a cat", "--vae", "pipe.safetensors"]),
        (3, ["plan", "a cat", "--embedding", "pipe.safetensors"]),
        (9, ["models", "check", "./pipe.safetensors"]),
    ],
)
def test_a_pipe_in_place_of_a_file_is_refused_at_once(
    code: int, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("pipe", "pipe.json", "pipe.safetensors"):
        pipe(Path(name))
    refused(sdcli(capfd, *words), code)


@needs_pipes
@pytest.mark.parametrize("name", ["config.toml", "presets/mine.toml"])
def test_a_pipe_in_place_of_settings_is_refused_at_once(
    name: str, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe(own_folders / "config" / name)
    done = sdcli(capfd, "plan", "a cat", "--preset", "mine")
    refused(done, 2)
    assert "a pipe or a device" in done.err


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no such device")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, ["bench", "compare", "/dev/zero", "/dev/zero"]),
        (9, ["inspect-unet", "/dev/zero"]),
        (9, ["plan", "a cat", "-m", "/dev/zero"]),
        (2, ["plan", "a cat", "--settings-from", "/dev/zero"]),
        (9, ["plan", "--prompts", "/dev/zero"]),
    ],
)
def test_a_device_without_an_end_is_not_read(code: int, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    refused(sdcli(capfd, *words), code)


@pytest.mark.parametrize("name", ["a.ckpt", "renamed.safetensors"])
def test_checking_a_pickle_refuses_it_unread(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path(name).write_bytes(b"\x80\x02}q\x00." + bytes(40))
    done = sdcli(capfd, "models", "check", f"./{name}")
    refused(done, 6)
    assert "sha256" not in done.err


@needs_pipes
def test_prompts_may_come_through_a_pipe(here: Path) -> None:
    """As `--prompts <(…)` gives them."""
    pipe(here / "prompts")
    command = [sys.executable, "-m", "sdcli", "plan", "--prompts", "prompts", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as started:
        (here / "prompts").write_text("a cat\na dog\n")
        plan = json.loads(started.communicate()[0])
    assert plan["request"]["prompts"] == ["a cat", "a dog"]


# --- sentences


def test_an_image_that_is_none_is_told_without_pythons_words(capfd: pytest.CaptureFixture[str]) -> None:
    Path("x.png").write_text("hello")
    done = sdcli(capfd, "plan", "--settings-from", "x.png")
    refused(done, 9)
    assert done.err.splitlines()[0] == "error: x.png is not a PNG, JPEG or WebP image"


def test_a_damaged_chunk_names_its_key_and_a_way_out(capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("sdcli", '{"schema": "sdcli.image/1", "job": {"index": null}}')
    Image.new("RGB", (8, 8)).save("x.png", pnginfo=info)
    done = sdcli(capfd, "plan", "--settings-from", "x.png")
    refused(done, 9)
    assert done.err.splitlines()[0] == ("error: the sdcli chunk of x.png: job.index should be a whole number, not null")


@pytest.mark.parametrize("address", ["garbage", "http://", "http://[", "ftp://x"])
def test_an_endpoint_that_is_no_address_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    done = sdcli(capfd, "pull", "someone/model")
    refused(done, 2)
    assert done.err.splitlines()[0] == f'error: HF_ENDPOINT is not a web address: "{address.rstrip("/")}"'


def test_one_step_is_one_step(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "a cat", "-m", "sd15", "--steps", "1")
    assert "1 step " in done.out and "1 steps" not in done.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hello", "wrong.json is not JSON"),
        ('{"a": 1}', "wrong.json is not an sdcli.bench document: it names no schema"),
        ('{"schema": "sdcli.bench/1"}', "wrong.json is not a complete result of sdcli bench"),
    ],
)
def test_a_file_that_is_no_result_of_bench_is_told_with_a_way_to_one(
    content: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("wrong.json").write_text(content)
    done = sdcli(capfd, "bench", "compare", "wrong.json", "wrong.json")
    assert done.code == 9
    assert done.err.splitlines() == [f"error: {said}", "  try: sdcli bench --quick --save new.json"]


# --- paths that are none


WITH_A_PATH = [
    "verify {}", "again {}", "diff {} {}", "meta show {}", "upscale {} --upscaler {}", "resume {}", "runs {}",
    "models {}", "models add {}", "models check {}", "pull {}", "inspect-unet ./{}", "bench compare {} {}",
    "generate a --prompts {}", "generate a --settings-from {}", "generate a --image {}",
    "generate a --control canny={}", "generate a --reference {}", "generate a -m ./{}", "generate a --refiner ./{}",
    "generate a --lora {}", "generate a --vae {}", "generate a --embedding {}",
]  # fmt: skip


PATHS = {"too long": "x" * 300 + ".png", "of nobody": "~nobody-of-that-name/x.png"}


@pytest.mark.parametrize(
    ("words", "path"),
    [*itertools.product(WITH_A_PATH, PATHS), ("bench -m builtin --save {}", "too long")],  # the other is a fine folder
)
def test_a_path_that_cannot_be_one_is_refused_and_is_no_bug(
    capfd: pytest.CaptureFixture[str], words: str, path: str
) -> None:
    done = sdcli(capfd, *words.replace("{}", PATHS[path]).split())
    assert done.code in (2, 3, 7, 9) and done.err.startswith("error: "), done.err
