"""What a folder must hold to be the built-in model; the one that ships, where a build has one, holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builtin_model
import pytest

from sdcli import data
from sdcli.errors import ModelMissing
from sdcli.models import folder


def changed(path: Path, **values: Any) -> None:
    before = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**before, **values}), encoding="utf-8")


def test_the_model_that_ships_holds_all_it_must() -> None:
    shipped = data.builtin_model()
    if shipped is None:
        pytest.skip("this build has no built-in model")
    assert builtin_model.faults(shipped) == []
    assert (shipped / "README.md").is_file()
    assert max(path.stat().st_size for path in shipped.rglob("*.safetensors")) < 16 << 20


@pytest.mark.parametrize(
    ("file", "values", "fault"),
    [
        ("", {}, None),
        ("model_index.json", {"sdcli": {**builtin_model.INDEX["sdcli"], "steps": 40}}, "20 steps at most"),
        ("model_index.json", {"sdcli": {**builtin_model.INDEX["sdcli"], "width": 256}}, "its size is its UNet's"),
        ("model_index.json", {"sdcli": {"preview": "blue"}}, "a colour for each latent channel"),
        ("model_index.json", {"sdcli": {"sampler": "DPM++ 2M Karras"}}, "its sampler can start from pure noise"),
        ("scheduler/scheduler_config.json", {"steps_offset": 0}, "what diffusers would change of the scheduler"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "leading"}, "zero terminal SNR, trailing, v-predict"),
        ("tokenizer/vocab.json", {"<|endoftext|>": 5000}, "numbers 0 to the encoder's last, the marks at the end"),
        ("tokenizer/tokenizer_config.json", {"pad_token": "!"}, "padding is the end mark"),
    ],
)
def test_what_a_folder_lacks_is_named(tmp_path: Path, file: str, values: dict[str, Any], fault: str | None) -> None:
    path = builtin_model.write(tmp_path / "builtin", hollow=True)
    if file:
        changed(path / file, **values)
    faults = builtin_model.faults(path)
    assert (not faults) if fault is None else any(name.startswith(fault) for name in faults)


def test_words_are_in_order(tmp_path: Path) -> None:
    path = builtin_model.write(tmp_path / "builtin", hollow=True)
    (path / "words.txt").write_text("cat\na\n", encoding="utf-8")
    assert builtin_model.faults(path) == ["words in small letters, composed, sorted, each once"]


def test_a_model_with_tokens_of_its_own_must_bring_them(tmp_path: Path) -> None:
    path = builtin_model.write(tmp_path / "builtin", hollow=True)
    assert folder.read(path).vocabulary == str(path / "tokenizer")
    (path / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ModelMissing, match=r"merges\.txt"):
        folder.read(path)
    changed(path / "text_encoder" / "config.json", vocab_size=49_410)
    with pytest.raises(Exception, match="not the same model"):  # its weights are too few for so many tokens
        folder.read(path)
    assert folder.read(path, whole=False).vocabulary is None  # CLIP's own, with words behind them
