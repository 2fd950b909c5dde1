"""models: the table, the folders that are looked through, and whether a model's files are sound."""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from pathlib import Path

import pytest
from cli_run import sdcli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import model_files as files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": [4, 768],
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": [640, 4]}  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    base = tmp_path / "sd"
    files.file(base / "dream.safetensors", files.checkpoint("sd15"))
    files.file(base / "lora" / "style.safetensors", LORA, metadata={"modelspec.trigger_phrase": "in my style"})
    (base / "old.ckpt").write_bytes(b"pickled")
    return base


def test_a_folder_is_listed_with_what_can_be_drawn_with_first(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "models", str(mine))
    lines = done.out.splitlines()
    assert done.code == 0 and lines[0] == str(mine)
    assert [line.split()[0] for line in lines[1:]] == ["dream", "style", "old.ckpt"]
    assert "sd15" in lines[1] and "2.13 GB" in lines[1] and "fp16" in lines[1]
    assert "LoRA" in lines[2] and "in my style" in lines[2]
    assert "refused" in lines[3]
    assert all(len(line) <= 80 for line in lines[1:])


def test_a_folder_and_a_file_of_one_name_are_told_apart(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files.folder(mine / "dream", "sd15")
    names = [line.split()[0] for line in sdcli(capfd, "models", str(mine)).out.splitlines()[1:]]
    assert {"dream/", "dream.safetensors"} <= set(names)


@pytest.mark.parametrize("word", ["remove", "delete"])
def test_another_word_for_a_verb_is_named(word: str, mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sdcli(capfd, "models", "add", str(mine))
    done = sdcli(capfd, "models", word, str(mine))
    assert done.code == 2 and f"  try: sdcli models rm {mine}\n" in done.err


def test_the_line_to_paste_draws_with_the_first(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sdcli(capfd, "models", "add", str(mine))
    assert '-m "dream"' in sdcli(capfd, "models").err
    assert sdcli(capfd, "generate", "a cat", "-m", "dream", "--engine", "fake", "--size", "64x64", "-q").code == 0


def test_json_is_one_object_with_every_field(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = sdcli(capfd, "models", str(mine), "--json").json
    assert answer["schema"] == "sdcli.models/1" and answer["folders"] == [{"path": str(mine), "exists": True}]
    found = {model["name"]: model for model in answer["models"]}
    assert found["style"]["words"] == ["in my style"] and found["style"]["family"] == "sd15"
    assert found["old.ckpt"]["kind"] == "pickle" and not found["old.ckpt"]["drawn"]


def test_an_added_folder_stays_and_is_forgotten_again(
    mine: Path, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sdcli(capfd, "config", "set", "steps", "9")
    assert sdcli(capfd, "models", "add", str(mine)).code == 0
    assert sdcli(capfd, "models", "add", str(mine)).code == 0
    kept = tomllib.loads((own_folders / "config/config.toml").read_text())
    assert kept == {"steps": 9, "folders": [str(mine)]}
    assert "dream" in sdcli(capfd, "models").out
    assert sdcli(capfd, "models", "rm", str(mine)).code == 0
    assert "dream" not in sdcli(capfd, "models").out
    assert tomllib.loads((own_folders / "config/config.toml").read_text()) == {"steps": 9}
    assert (mine / "dream.safetensors").is_file()


def test_a_folder_with_quotes_and_umlauts_is_kept_right(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "a \"b\" 'c' ü # x"
    files.file(odd / "style.safetensors", LORA)
    assert sdcli(capfd, "models", "add", str(odd)).code == 0
    assert "style" in sdcli(capfd, "models").out
    assert sdcli(capfd, "models", "rm", odd.name).code == 0


def test_what_is_no_folder_cannot_be_added(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "models", "add", str(tmp_path / "none")).code == 3
    assert sdcli(capfd, "models", str(tmp_path / "none")).code == 3
    assert sdcli(capfd, "models", "add").code == 2
    assert sdcli(capfd, "models", "a", "b").code == 2


def test_a_folder_that_has_gone_is_said_to_be_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "usb").mkdir()
    sdcli(capfd, "models", "add", str(tmp_path / "usb"))
    (tmp_path / "usb").rmdir()
    done = sdcli(capfd, "models")
    assert done.code == 0 and "not found" in done.out


def test_rm_deletes_from_the_cache_and_nothing_else(
    mine: Path, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub = own_folders / "huggingface/hub"
    files.snapshot(hub, "me/mine", COMMIT)
    files.snapshot(hub, "me/other", COMMIT)
    answer = sdcli(capfd, "models", "rm", "me/mine", "--json").json
    assert answer["removed"] == "me/mine" and answer["freed_bytes"] > 0
    assert sorted(path.name for path in hub.iterdir()) == ["models--me--other"]
    for name in (str(mine / "dream.safetensors"), "me/mine", "../other", "me/..", "dream"):
        assert sdcli(capfd, "models", "rm", name).code == 3
    assert (mine / "dream.safetensors").is_file() and (hub / "models--me--other").is_dir()


def test_check_says_sound_with_the_hash(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = files.file(tmp_path / "style.safetensors", LORA)
    done = sdcli(capfd, "models", "check", str(path))
    assert done.code == 0 and hashlib.sha256(path.read_bytes()).hexdigest() in done.out
    assert done.out.splitlines()[-1].endswith("sound")


def test_check_names_what_is_not_finite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = files.file(tmp_path / "style.safetensors", LORA)
    raw = bytearray(path.read_bytes())
    raw[-2:] = b"\x00\x7c"
    path.write_bytes(raw)
    done = sdcli(capfd, "models", "check", str(path))
    assert done.code == 9 and "lora_up.weight: 1 of 2,560 numbers are not finite" in done.out
    answer = sdcli(capfd, "models", "check", str(path), "--json")
    assert answer.code == 9 and answer.json["sound"] is False


def test_check_finds_a_changed_byte_in_the_cache_by_the_hubs_hash(
    tmp_path: Path, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from fake_hub import pipeline

    place = own_folders / "huggingface/hub/models--me--tiny"
    for name, content in pipeline().items():
        path = place / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("fp16.safetensors"):
            blob = place / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(content[:-1] + b"\x01" if name.startswith("vae") else content)
            path.symlink_to(blob)
        elif name.endswith((".json", "merges.txt")):
            path.write_bytes(content)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    answer = sdcli(capfd, "models", "check", "me/tiny", "--json")
    wrong = [Path(one["path"]).parent.name for one in answer.json["files"] if one["expected"] != one["sha256"]]
    assert answer.code == 9 and wrong == ["vae"]
    said = sdcli(capfd, "models", "check", "me/tiny").err
    assert "sdcli models rm me/tiny" in said and "sdcli pull me/tiny" in said


def test_an_empty_machine_says_how_to_get_a_model(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli import data

    monkeypatch.setattr(data, "builtin_model", lambda: None)
    done = sdcli(capfd, "models")
    assert (done.code, done.out) == (0, "no models found\n")
    assert "sdcli pull sd15" in done.err and json.loads(sdcli(capfd, "models", "--json").out)["models"] == []
