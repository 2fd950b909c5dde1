"""Bad input: its own exit code, a sentence and a way out, before anything heavy, and never a traceback."""

import json
import os
from pathlib import Path

import pytest
from cli_run import sdcli

GOOD = ("--engine", "fake", "--size", "64x64")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.safetensors").write_bytes((500).to_bytes(8, "little") + b'{"a":')
    (tmp_path / "renamed.safetensors").write_bytes(b"\x80\x02}q\x00." + bytes(40))
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / "pointer.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "page.safetensors").write_bytes(b"<!doctype html><html>")
    tensor = {"dtype": "F16", "shape": [1, 768], "data_offsets": [0, 1536]}
    header = json.dumps({"lora_unet_x_attn2_to_k.lora_down.weight": tensor}).encode()
    (tmp_path / "lora.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1536))
    (tmp_path / "text.txt").write_text("hello")
    return tmp_path


CASES = {
    "width 990": (2, ["a cat", "-W", "990"], "976 and 992"),
    "no steps": (2, ["a cat", "-s", "0"], "--steps"),
    "half a step": (2, ["a cat", "-s", "1.5"], "whole number"),
    "empty prompt": (2, [""], "empty"),
    "no prompt": (2, [], "no prompt"),
    "guidance nan": (2, ["a cat", "-g", "nan"], "--guidance"),
    "seed 2^70": (2, ["a cat", "--seed", str(2**70)], "4294967295"),
    "unknown sampler": (2, ["a cat", "--sampler", "eulr"], "Euler"),
    "unknown preset": (2, ["a cat", "--preset", "mlpref"], "mlperf"),
    "unknown slot": (2, ["a cat", "--pin", "place=resident"], "placement"),
    "unknown choice": (2, ["a cat", "--pin", "placement=residnt"], "resident"),
    "no pin": (2, ["a cat", "--pin", "resident"], "SLOT=CHOICE"),
    "fp16 on a cpu": (2, ["a cat", "--dtype", "fp16", "--device", "cpu"], "fp16"),
    "unknown dtype": (2, ["a cat", "--dtype", "fp8"], "bf16"),
    "vram of a cpu": (2, ["a cat", "--max-vram", "6", "--device", "cpu"], "--max-ram"),
    "bad size": (2, ["a cat", "--max-ram", "lots"], "6GiB"),
    "forgotten quotes": (2, ["a", "red", "cat"], "without quotes"),
    "unknown option": (2, ["a cat", "--stpes", "3"], "--steps"),
    "absent prompts": (2, ["--prompts", "none.txt"], "no file"),
    "seeds and number": (2, ["a cat", "--seed", "1,2", "-n", "3"], "--num-images"),
    "bad template": (2, ["a cat", "-o", "{prompt}.png"], "{seed}"),
    "two in one file": (2, ["a cat", "-n", "2", "-o", "one.png"], "one"),
    "model of no name": (2, ["a cat", "-m", ""], "--model"),
    "vae of no name": (2, ["a cat", "--vae", " "], "--vae"),
    "lora of no name": (2, ["a cat", "--lora", ""], "--lora"),
    "preset of no name": (2, ["a cat", "--preset", ""], "--preset"),
    "settings from nowhere": (2, ["a cat", "--settings-from", ""], "--settings-from"),
    "revision of the built-in model": (2, ["a cat", "-m", "builtin", "--revision", "main"], "built in"),
    "unknown device": (2, ["a cat", "--device", "gpu"], "cuda"),
    "unknown model": (3, ["a cat", "-m", "dreamshaper9"], "dreamshaper9"),
    "absent path": (3, ["a cat", "-m", "./none.safetensors"], "none.safetensors"),
    "absent hub id": (3, ["a cat", "-m", "me/none"], "me/none"),
    "folder without an index": (3, ["a cat", "-m", "empty"], "model_index.json"),
    "no room": (4, ["a cat", "--max-ram", "300MiB"], "GiB"),
    "a pickle": (6, ["a cat", "-m", "model.ckpt"], "run code"),
    "a renamed pickle": (6, ["a cat", "-m", "renamed.safetensors"], "run code"),
    "cut off": (9, ["a cat", "-m", "cut.safetensors"], "cut off"),
    "lfs pointer": (9, ["a cat", "-m", "pointer.safetensors"], "git-lfs"),
    "html": (9, ["a cat", "-m", "page.safetensors"], "web page"),
    "a lora as model": (9, ["a cat", "-m", "lora.safetensors"], "LoRA"),
    "foreign file": (9, ["a cat", "-m", "text.txt"], "text.txt"),
    "image without settings": (9, ["--settings-from", "text.txt"], "text.txt"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_has_its_code_a_sentence_and_a_way_out(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, words, said = CASES[case]
    done = sdcli(capfd, "generate", *words, "--engine", "fake")
    assert (done.code, done.out) == (code, "")
    error, hint = done.err.splitlines()[0], done.err.splitlines()[1]
    assert error.startswith("error: ") and hint.startswith("  try: ")
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("case", CASES)
def test_with_json_the_same_mistake_is_one_object(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, words, _ = CASES[case]
    done = sdcli(capfd, "generate", *words, "--engine", "fake", "--json")
    assert done.code == code
    assert done.json["error"]["code"] == code
    assert set(done.json["error"]) == {"code", "type", "message", "done", "hint", "details"}


@pytest.mark.parametrize(
    "words", [["frobnicate"], ["--nope"], ["plan", "--nope"], ["config", "set", "steps"], ["help", "me"]]
)
def test_every_command_answers_a_usage_error_with_code_2(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, *words)
    assert done.code == 2
    assert done.err.startswith("error: ") and "  try: sdcli " in done.err


def test_a_bare_prompt_is_asked_about(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "a cat", "-n", "2")
    assert done.code == 2
    assert "did you mean generate" in done.err and 'sdcli generate "a cat" -n 2' in done.err


def test_a_mistyped_command_names_the_right_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert 'sdcli generate "a cat"' in sdcli(capfd, "genrate", "a cat").err


@pytest.mark.skipif(os.name == "nt", reason="no such folder there")
def test_a_folder_that_cannot_be_written_is_told_before_drawing(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", *GOOD, "-o", "/proc/none")
    assert done.code == 7
    assert "  try: " in done.err


def test_a_model_not_on_this_disk_says_how_large_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", "-m", "sd15", "--offline")
    assert done.code == 3
    assert "2.13 GB" in done.err


@pytest.mark.bug
def test_a_bug_is_code_1_with_a_traceback_only_where_asked(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from sdcli.request import jobs

    monkeypatch.setattr(jobs, "check", lambda request: 1 / 0)
    quiet = sdcli(capfd, "generate", "a cat", *GOOD)
    assert (quiet.code, "Traceback" in quiet.err) == (1, False)
    assert "Traceback" in sdcli(capfd, "generate", "a cat", *GOOD, "--debug").err
    assert sdcli(capfd, "generate", "a cat", *GOOD, "--json").json["error"]["type"] == "bug"


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ["config", "set", "guidance", "99999"], "--guidance 99999"),
        (2, ["config", "set", "width", "100"], "--width 100"),
        (2, ["config", "set", "steps", "0"], "--steps 0"),
        (2, ["config", "set", "model", ""], "--model"),
        (3, ["config", "set", "model", "nope"], 'no model "nope"'),
        (2, ["bench", "--processes", "0"], "--processes"),
        (2, ["bench", "--quick", "--processes", "0"], "--processes"),
        (2, ["bench", "--quick", "--processes", "3"], "--quick"),
    ],
)
def test_what_could_never_work_is_not_taken_in_silence(
    code: int, words: list[str], said: str, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = sdcli(capfd, *words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err and "\n  try: " in done.err
    assert not (own_folders / "config" / "config.toml").exists()


@pytest.mark.parametrize(("name", "value"), [("model", "sd15"), ("model", "someone/model"), ("guidance", "5")])
def test_what_may_work_is_kept(name: str, value: str, own_folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "config", "set", name, value).code == 0
    assert value in (own_folders / "config" / "config.toml").read_text()


def test_syntax_that_sdcli_lacks_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    said = "not sdcli's syntax, taken as plain words: [cat:dog:0.5], AND"
    words = ["a [cat:dog:0.5] AND {a|b}", "-m", "builtin"]
    assert f"note: {said}" in " ".join(sdcli(capfd, "generate", *words, *GOOD).err.split())
    plan = sdcli(capfd, "plan", *words, "--json").json
    assert said in [one["message"] for one in plan["warnings"] if one["code"] == "syntax-not-known"]
