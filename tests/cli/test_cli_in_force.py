"""Damaged configs, pipes and devices, met by whole commands; and the settings and the model that are in force."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_run import sdcli, start

from scripts import make_checkpoint

POSIX = pytest.mark.skipif(os.name == "nt", reason="pipes and devices as POSIX has them")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint.write_folder(tmp_path_factory.mktemp("model") / "tiny", "sd15", tiny=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- damaged configs


DAMAGED = [
    ("unet", "act_fn", "nonsense"), ("unet", "norm_num_groups", 0), ("unet", "norm_num_groups", True),
    ("unet", "block_out_channels", [0, 0, 0, 0]), ("unet", "attention_head_dim", 0), ("unet", "in_channels", "4"),
    ("unet", "cross_attention_dim", -32), ("unet", "layers_per_block", [1]),
    ("vae", "scaling_factor", "1"), ("vae", "scaling_factor", 0), ("vae", "latent_channels", 1e9),
    ("vae", "act_fn", 3), ("vae", "norm_num_groups", -1),
    ("text_encoder", "hidden_act", "nonsense"), ("text_encoder", "num_attention_heads", 0),
    ("text_encoder", "max_position_embeddings", 7),
    ("scheduler", "beta_start", "x"), ("scheduler", "beta_end", [1]), ("scheduler", "num_train_timesteps", 0),
    ("scheduler", "num_train_timesteps", 10**12), ("scheduler", "beta_schedule", "nonsense"),
    ("scheduler", "steps_offset", -1), ("scheduler", "timestep_spacing", "nonsense"),
    ("scheduler", "trained_betas", ["x"]),
]  # fmt: skip


@pytest.mark.parametrize(("part", "key", "value"), DAMAGED, ids=str)
def test_a_damaged_config_is_a_bad_file_and_no_bug(
    tiny: Path, here: Path, capfd: pytest.CaptureFixture[str], part: str, key: str, value: Any
) -> None:
    folder = here / "model"
    shutil.copytree(tiny, folder, copy_function=os.link)
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    config = json.loads((folder / part / name).read_text())
    (folder / part / name).unlink()
    (folder / part / name).write_text(json.dumps({**config, key: value}))
    done = sdcli(capfd, "generate", "a cat", "-m", str(folder), "-s", "1", "--size", "64x64", "--dtype", "fp32", "-q")
    assert done.code == 9, done.err
    assert "Traceback" not in done.err and "Warning" not in done.err
    assert done.err.startswith("error: ") and "\n  try: " in done.err


# --- what never ends


@POSIX
@pytest.mark.parametrize("words", [
    ("generate", "a cat", "-m", "model"), ("inspect-unet", "pipe"), ("inspect-unet", "model"),
    ("bench", "compare", "pipe", "pipe"), ("bench", "compare", "/dev/zero", "/dev/zero"),
    ("generate", "a cat", "--engine", "fake", "--settings-from", "pipe"), ("models", "check", "pipe"),
    ("generate", "a cat", "-m", "model", "--lora", "pipe"), ("inspect-unet", "/dev/zero"),
    ("generate", "a cat", "--engine", "fake", "--settings-from", "/dev/zero"),
], ids=" ".join)  # fmt: skip
def test_a_pipe_or_a_device_is_not_waited_for_nor_read_without_end(
    tiny: Path, here: Path, words: tuple[str, ...]
) -> None:
    shutil.copytree(tiny, here / "model", copy_function=os.link)
    (here / "model/unet/config.json").unlink()
    os.mkfifo(here / "model/unet/config.json")
    os.mkfifo(here / "pipe")
    done = start(*words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        _, error = done.communicate(timeout=60)
    finally:
        done.kill()
    assert done.returncode in (2, 3, 9), error
    assert b"Traceback" not in error and b"error: " in error and b"  try: " in error


# --- flags and settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "a cat", "--engine", "foo"), "--engine"),
        (("plan", "a cat", "--revision", "main", "-m", "tiny"), "--revision is for models of the Hub"),
        (("plan", "a cat", "-m", ""), "-m"),
    ],
    ids=["an engine", "a revision of a folder", "no model"],
)
def test_what_cannot_be_meant_is_refused(
    tiny: Path, here: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    done = sdcli(capfd, *[str(tiny) if word == "tiny" else word for word in words])
    assert done.code == 2 and said in done.err and "  try: " in done.err


def test_config_show_tells_what_a_run_would_use_with_the_model_in_force(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown() -> dict[str, tuple[Any, str]]:
        rows = sdcli(capfd, "config", "show", "--json").json["values"]
        return {row["name"]: (row["value"], row["origin"]) for row in rows}

    plan = sdcli(capfd, "plan", "a cat", "--json").json
    assert shown()["model"][0] == plan["request"]["model"]
    for name in ("width", "height", "steps", "guidance", "sampler"):
        assert shown()[name] == (plan["request"][name], plan["origins"].get(name, "default")), name
    monkeypatch.setenv("SDCLI_MODEL", "sdxl")
    assert shown()["width"] == (1024, "family") and shown()["model"] == ("sdxl", "environment")
    assert "Settings for sdxl" in sdcli(capfd, "config", "show").err
    monkeypatch.setenv("SDCLI_MODEL", "nowhere-9")
    told = sdcli(capfd, "config", "show")
    assert told.code == 0 and "The model was not found" in told.err


def test_a_broken_config_file_is_a_problem_to_doctor(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_HOME", str(here / "home"))
    (here / "home/config").mkdir(parents=True)
    (here / "home/config/config.toml").write_text("garbage = = 3\n")
    done = sdcli(capfd, "doctor", "--json")
    assert done.code == 2 and "config" in [problem["code"] for problem in done.json["problems"]]
    assert "config.toml:1" in sdcli(capfd, "doctor").out


def test_what_a_plan_warns_of_is_said_before_drawing_and_not_with_q(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "a cat", "--engine", "fake", "--size", "64x64", "-s", "1", "-g", "5")
    told = sdcli(capfd, *words).err
    assert "note: builtin was trained at 256×256; at 64×64" in told and "note: 1 step is few for" in told
    assert "note:" not in sdcli(capfd, *words, "-q").err


@pytest.mark.parametrize(
    ("name", "wrong", "right"), [("steps", "0", "1"), ("guidance", "200", "100"), ("width", "5", "64")]
)
def test_a_setting_that_no_run_could_use_is_corrected_with_a_line_that_works(
    capfd: pytest.CaptureFixture[str], name: str, wrong: str, right: str
) -> None:
    refused = sdcli(capfd, "config", "set", name, wrong)
    assert refused.code == 2 and f"  try: sdcli config set {name} {right}\n" in refused.err
    assert sdcli(capfd, "config", "set", name, right).code == 0
