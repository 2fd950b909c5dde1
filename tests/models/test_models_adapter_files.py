"""What may be typed after --lora and --embedding, where names are looked for, and which embeddings and VAEs fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import file, original_vae

from sdcli.errors import BadFile, ModelMissing, Usage
from sdcli.models import adapter_files, embedding
from sdcli.models.model import Model
from sdcli.models.shipped import component_of

PARTS = {"sd15": ("unet", "text_encoder", "vae"), "sdxl": ("unet", "text_encoder", "text_encoder_2", "vae")}


def model(family: str, path: Path | None = None) -> Model:
    components = {name: component_of(family, name, "fp16") for name in PARTS[family]}
    source = "file" if path else "hub"
    return Model(
        name=f"my {family}", kind=family, family=family, source=source, components=components,
        path=str(path) if path else None,
    )  # fmt: skip


# --- what was typed


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("x.safetensors", "x.safetensors", 1.0),
        ("x.safetensors:0.8", "x.safetensors", 0.8),
        ("x:-1", "x", -1.0),
        ("x:+.5", "x", 0.5),
        ("x:2.", "x", 2.0),
        ("C:\\x.safetensors", "C:\\x.safetensors", 1.0),
        ("C:\\x.safetensors:0.8", "C:\\x.safetensors", 0.8),
        ("C:/loras/x.safetensors:0.8", "C:/loras/x.safetensors", 0.8),
        ("ink: wash", "ink: wash", 1.0),
        ("ink:0.5:0.25", "ink:0.5", 0.25),
        ("x:nan", "x:nan", 1.0),
        ("x:1e9", "x:1e9", 1.0),
        (":0.5", ":0.5", 1.0),
    ],
)
def test_a_weight_follows_the_last_colon(text: str, name: str, weight: float) -> None:
    assert adapter_files.weighted(text) == (name, weight)


@pytest.mark.parametrize(
    ("text", "name", "word"),
    [
        ("x.safetensors", "x.safetensors", ""),
        ("x.safetensors:my cat", "x.safetensors", "my cat"),
        ("C:\\x.safetensors", "C:\\x.safetensors", ""),
        ("C:x.safetensors", "C:x.safetensors", ""),
        ("C:\\x.safetensors:<cat>", "C:\\x.safetensors", "<cat>"),
        ("x: ", "x: ", ""),
    ],
)
def test_a_word_follows_the_last_colon_except_a_drives(text: str, name: str, word: str) -> None:
    assert adapter_files.with_word(text) == (name, word)


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_nothing_that_can_be_typed_breaks_the_reading_of_it(text: str) -> None:
    name, weight = adapter_files.weighted(text)
    assert text.startswith(name) and abs(weight) < 10_000
    name, word = adapter_files.with_word(text)
    assert text.startswith(name) and word in text


def test_a_file_followed_by_anything_but_a_weight_is_a_mistake(tmp_path: Path) -> None:
    path = file(tmp_path / "x.safetensors", {"a": [1]})
    with pytest.raises(Usage, match="is not a weight"):
        adapter_files.weighted(f"{path}:high")


# --- where names are looked for


def test_names_are_found_beside_the_model_and_below_added_folders(tmp_path: Path) -> None:
    models, added = tmp_path / "models" / "Stable-diffusion", tmp_path / "added"
    checkpoint = file(models / "m.safetensors", {"a": [1]})
    near = file(models / "near.safetensors", {"a": [1]})
    lora = file(tmp_path / "models" / "Lora" / "styles" / "Ink.safetensors", {"a": [1]})
    far = file(added / "deep" / "far.safetensors", {"a": [1]})
    file(models / "private" / "hidden.safetensors", {"a": [1]})
    folders = adapter_files.search_folders(model("sd15", checkpoint), [added])
    assert adapter_files.find("near", "LoRA", folders) == near
    assert adapter_files.find("ink", "LoRA", folders) == lora
    assert adapter_files.find("far", "LoRA", folders) == far
    assert adapter_files.find(str(far), "LoRA", ()) == far
    with pytest.raises(ModelMissing, match='no LoRA "hidden"'):
        adapter_files.find("hidden", "LoRA", folders)
    with pytest.raises(ModelMissing, match="no LoRA"):
        adapter_files.find(str(far), "LoRA", folders, paths=False)


def test_a_name_that_two_files_have_is_asked_back(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        file(tmp_path / folder / "ink.safetensors", {"a": [1]})
    with pytest.raises(Usage, match="matches 2 files"):
        adapter_files.find("ink", "LoRA", (adapter_files.SearchFolder(tmp_path),))


def test_a_misspelt_name_is_answered_with_near_ones(tmp_path: Path) -> None:
    file(tmp_path / "watercolour.safetensors", {"a": [1]})
    with pytest.raises(ModelMissing, match="near: watercolour"):
        adapter_files.find("watercolor", "LoRA", (adapter_files.SearchFolder(tmp_path),))


def test_the_hash_galleries_know_a_lora_by_leaves_the_header_out(tmp_path: Path) -> None:
    path = file(tmp_path / "l.safetensors", {"a": [3, 5]})
    raw = path.read_bytes()
    expected = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert adapter_files.tensors_sha256(path) == expected
    labelled = file(tmp_path / "n.safetensors", {"a": [3, 5]}, metadata={"sshs_model_hash": "ab" * 32})
    assert adapter_files.tensors_sha256(labelled) == "ab" * 32
    forged = file(tmp_path / "f.safetensors", {"a": [3, 5]}, metadata={"sshs_model_hash": "../x"})
    assert adapter_files.tensors_sha256(forged) == expected


# --- embeddings


@pytest.mark.parametrize(
    ("family", "shapes", "vectors", "token"),
    [
        ("sd15", {"emb_params": [4, 768]}, 4, ""),
        ("sd15", {"<red-cat>": [768]}, 1, "<red-cat>"),
        ("sdxl", {"clip_l": [2, 768], "clip_g": [2, 1280]}, 2, ""),
    ],
)
def test_every_layout_of_an_embedding_is_read(
    family: str, shapes: dict[str, list[int]], vectors: int, token: str, tmp_path: Path
) -> None:
    learned = embedding.read(file(tmp_path / "e.safetensors", shapes), model(family))
    assert (learned.vectors, learned.token) == (vectors, token)
    assert set(learned.tensors) == {name for name in PARTS[family] if name.startswith("text_encoder")}


@pytest.mark.parametrize(
    ("family", "shapes", "message"),
    [
        ("sdxl", {"emb_params": [4, 768]}, "an embedding for Stable Diffusion 1.5; my sdxl is SDXL"),
        ("sd15", {"clip_l": [2, 768], "clip_g": [2, 1280]}, "an embedding for SDXL; my sd15 is Stable Diffusion 1.5"),
        ("sd15", {"emb_params": [4, 1024]}, "an embedding for Stable Diffusion 2; my sd15 is Stable Diffusion 1.5"),
        ("sd15", {"emb_params": [4, 1280]}, "has vectors of width 1280; my sd15 needs width 768"),
        ("sdxl", {"clip_l": [2, 768], "clip_g": [3, 1280]}, "has 2 and 3 vectors"),
        ("sd15", {"emb_params": [76, 768]}, "has 76 vectors"),
        ("sd15", {"a": [4, 768], "b": [4, 768], "c": [4, 768]}, "is not an embedding"),
        ("sd15", original_vae(), "a VAE, not an embedding"),
    ],
)
def test_what_does_not_fit_is_named(family: str, shapes: dict[str, list[int]], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile) as refused:
        embedding.read(file(tmp_path / "e.safetensors", shapes), model(family))
    assert message in refused.value.message and refused.value.code == 9


# --- VAEs


def test_a_vae_of_other_latents_or_with_parts_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"16 latent channels; my sd15 has 4"):
        adapter_files.with_vae(model("sd15"), file(tmp_path / "v.safetensors", original_vae(16, "")))
    with pytest.raises(BadFile, match="VAE parameters"):
        adapter_files.with_vae(model("sd15"), file(tmp_path / "v.safetensors", original_vae(4, "")))


def test_the_vae_of_a_whole_checkpoint_will_do(tmp_path: Path) -> None:
    from model_files import checkpoint

    path = file(tmp_path / "m.safetensors", checkpoint("sd15"))
    changed = adapter_files.with_vae(model("sdxl"), path)
    assert changed.components["vae"].files == (str(path),)
    # how latents are scaled is the model's affair, not the decoder's
    assert json.dumps(dict(changed.components["vae"].config)) == json.dumps(
        dict(model("sdxl").components["vae"].config)
    )
