"""docs/models.md tells the truth: its commands run, in its order, and say what it shows."""

from __future__ import annotations

import json
import random
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from cli_run import sdcli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import model_files as files
from fake_hub import FakeHub, repository

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
LAYERS = ("attn1_to_k", "attn2_to_k", "attn2_to_v")
MODULE = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_"


def lora(width: int = 768, *, stray: bool = False) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for layer in (*LAYERS, *(["attn9_to_k"] if stray else [])):
        shapes[f"{MODULE}{layer}.lora_down.weight"] = [8, 640 if layer.startswith("attn1") else width]
        shapes[f"{MODULE}{layer}.lora_up.weight"] = [640, 8]
        shapes[f"{MODULE}{layer}.alpha"] = []
    return shapes


@pytest.fixture
def world(server: FakeHub, tmp_path: Path) -> Path:
    """A hobbyist's folder, and a hub with a LoRA and a small model."""
    files.file(tmp_path / "sd/dreamshaper_8.safetensors", files.checkpoint("sd15"))
    notes = {"modelspec.trigger_phrase": "ink wash style"}
    files.file(tmp_path / "sd/Lora/ink wash.safetensors", lora(stray=True), metadata=notes)
    files.file(tmp_path / "sd/Lora/oil_xl.safetensors", lora(2048))
    files.file(tmp_path / "sd/embeddings/easynegative.safetensors", {"emb_params": [8, 768]}, dtype="F32")
    files.file(tmp_path / "sd/vae/sharp.safetensors", files.original_vae(prefix=""), dtype="F32")
    (tmp_path / "sd/old.ckpt").write_bytes(b"pickled")
    made = files.file(tmp_path / "made", lora())
    held = bytearray(made.read_bytes())
    held[-1000:] = bytes(byte & 0xBF for byte in random.Random(1).randbytes(1000))
    made.unlink()
    server.repositories["someone/pencil"] = repository(
        {"pencil.safetensors": bytes(held)}, commit="5" * 40, card={"license": "mit"}
    )
    server.repositories["someone/small-sd"] = repository(commit="7" * 40)
    return tmp_path


def blocks() -> Iterator[tuple[str, list[str]]]:
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL):
        command, lines = "", []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, lines
                command, lines = line[2:], []
            else:
                lines.append(line)
        yield command, lines


def fits(said: str, shown: str) -> bool:
    """`…` at the end of a line, or in it, stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), said) is not None


def test_the_commands_say_what_the_page_shows(world: Path, capfd: pytest.CaptureFixture[str], subtests: object) -> None:
    seen = list(blocks())
    assert len(seen) >= 8
    for command, lines in seen:
        words = shlex.split(command)
        assert words[0] == "sdcli"
        done = sdcli(capfd, *words[1:])
        said = iter([*done.err.splitlines(), *done.out.splitlines()])
        for line in lines:
            assert any(fits(one, line) for one in said), f"{command}\n{line!r} is not in\n{done.err}{done.out}"


def test_the_fields_for_programs_are_the_programs_own() -> None:
    """Every key of the three objects stands in the page, and nothing else is said to."""
    from sdcli.cli import models, pull
    from sdcli.models import check, listing

    for kinds in (
        (pull.Pulled,),
        (models.Listing, models.ModelFolder, listing.Entry),
        (check.Check, check.FileCheck, check.NotFiniteTensor),
    ):
        name = next(field.default for field in fields(kinds[0]) if field.name == "schema")
        block = next(block for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL) if str(name) in block)
        assert set(_keys(json.loads(block))) == {field.name for kind in kinds for field in fields(kind)} | (
            {"sha256", "git", "size", "path"} if kinds[0] is pull.Pulled else set()
        )


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
