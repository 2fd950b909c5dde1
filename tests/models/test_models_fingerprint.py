"""Fingerprints of weights: any tensor counts, and how a file is laid out does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

from scripts import make_checkpoint
from sdcli.models import folder
from sdcli.models.fingerprint import OF_EACH, fingerprint, fingerprints

TENSORS = {
    "a.weight": torch.arange(8192, dtype=torch.float32), "a.bias": torch.ones(4), "b.weight": torch.zeros(64, 32),
}  # fmt: skip


def of(path: Path, metadata: dict[str, str] | None = None, **changes: torch.Tensor) -> str:
    save_file(TENSORS | {name.replace("_", "."): tensor for name, tensor in changes.items()}, path, metadata)
    return fingerprint((str(path),))


def test_metadata_and_shards_have_no_say(tmp_path: Path) -> None:
    whole = of(tmp_path / "x.safetensors")
    assert of(tmp_path / "y.safetensors", {"title": "another"}) == whole
    for number, name in enumerate(TENSORS):
        save_file({name: TENSORS[name]}, tmp_path / f"{number}.safetensors")
    assert fingerprint(tuple(str(tmp_path / f"{number}.safetensors") for number in (2, 0, 1))) == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"a_weight": TENSORS["a.weight"] * 1.001}, {"a_bias": torch.tensor([1, 1, 1, 1.001])},
        {"b_weight": torch.zeros(32, 64)}, {"b_weight": torch.zeros(64, 32).half()}, {"c": torch.zeros(1)},
    ],
    ids=["numbers", "one of a few numbers", "a shape", "a type", "one more"],
)  # fmt: skip
def test_every_tensor_has(tmp_path: Path, changes: dict[str, torch.Tensor]) -> None:
    assert of(tmp_path / "x.safetensors") != of(tmp_path / "y.safetensors", **changes)


def test_of_a_large_tensor_only_the_middle_is_read(tmp_path: Path) -> None:
    changed, elsewhere = TENSORS["a.weight"].clone(), TENSORS["a.weight"].clone()
    changed[4096 + OF_EACH // 8 - 1] += 1
    elsewhere[0] += 1
    whole = of(tmp_path / "x.safetensors")
    assert of(tmp_path / "y.safetensors", a_weight=changed) != whole
    assert of(tmp_path / "z.safetensors", a_weight=elsewhere) == whole


def test_each_component_of_a_model_has_its_own_and_one_that_is_gone_has_none(tmp_path: Path) -> None:
    model = folder.read(make_checkpoint.write_folder(tmp_path / "tiny", "sdxl", tiny=True))
    found = fingerprints(model)
    assert set(found) == {"unet", "vae", "text_encoder", "text_encoder_2"} and len(set(found.values())) == 4
    Path(model.components["vae"].files[0]).unlink()
    assert set(fingerprints(model)) == {"unet", "text_encoder", "text_encoder_2"}
