"""IP-Adapters and image encoders, recognised by headers and configs alone; whatever does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import model_files as make
import pytest

from scripts import make_checkpoint
from sdcli.errors import BadFile, ModelMissing, SdcliError, Unsafe, Usage
from sdcli.models import reference, resolve
from sdcli.models.model import Model
from sdcli.models.reference import check_fits, check_layers, read, read_encoder, with_encoder

# Millions of parameters: of what makes tokens, and of the layers' keys and values.
SIZES = {
    ("sd15", "plain", "ViT-H"): 22.3, ("sd15", "plus", "ViT-H"): 49.1, ("sdxl", "plain", "ViT-bigG"): 351.3,
    ("sdxl", "plain", "ViT-H"): 349.2, ("sdxl", "plus", "ViT-H"): 423.7,
}  # fmt: skip


def file_of(path: Path, family: str, kind: str, encoder: str) -> Path:
    """Full size, with holes in place of weights."""
    return make_checkpoint.write_ip_adapter(path, family, kind, encoder=encoder, dtype="fp16", seed=None)


@pytest.mark.parametrize(("family", "kind", "encoder"), SIZES)
def test_a_file_gives_its_kind_its_family_and_its_size(tmp_path: Path, family: str, kind: str, encoder: str) -> None:
    found = read(file_of(tmp_path / "ip.safetensors", family, kind, encoder))
    assert (found.name, found.family, found.component.config["kind"]) == ("ip", family, kind)
    assert round(found.component.parameters / 1e6, 1) == SIZES[family, kind, encoder]
    assert found.component.config["tokens"] == (4 if kind == "plain" else 16)
    assert (found.component.stored_bytes, found.component.stored_dtype) == (2 * found.component.parameters, "fp16")
    assert len(found.component.config["layers"]) == (16 if family == "sd15" else 70)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As IP-Adapter's own: encoders of full size, with holes in place of weights."""
    root = tmp_path_factory.mktemp("IP-Adapter")
    for folder, encoder in (("models", "ViT-H"), ("sdxl_models", "ViT-bigG")):
        make_checkpoint.write_image_encoder(root / folder / "image_encoder", encoder, dtype="fp16", seed=None)
    for folder, family, kind, encoder in (
        ("models", "sd15", "plain", "ViT-H"), ("models", "sd15", "plus", "ViT-H"),
        ("models", "sd15", "full", "ViT-H"), ("models", "sd15", "plain", "ViT-bigG"),
        ("sdxl_models", "sdxl", "plain", "ViT-bigG"), ("sdxl_models", "sdxl", "plus", "ViT-H"),
    ):  # fmt: skip
        file_of(root / folder / f"{family}-{kind}-{encoder}.safetensors", family, kind, encoder)
    return root


@pytest.mark.parametrize("name", [
    "models/sd15-plain-ViT-H", "models/sd15-plus-ViT-H", "models/sd15-full-ViT-H", "models/sd15-plain-ViT-bigG",
    "sdxl_models/sdxl-plain-ViT-bigG", "sdxl_models/sdxl-plus-ViT-H",
])  # fmt: skip
def test_the_encoder_is_found_in_the_repository(repository: Path, name: str) -> None:
    """1280 numbers are a row of ViT-H's and a vector of ViT-bigG's."""
    adapter, encoder = with_encoder(read(repository / f"{name}.safetensors"), None)
    assert encoder.title == f"CLIP {name.split('-', 2)[2]}/14"
    sizes = {"ViT-H": 632_076_800, "ViT-bigG": 1_844_907_264}
    assert encoder.component.parameters == sizes[name.split("-", 2)[2]]
    assert adapter.component.config.get("positions", 257) == 257
    assert adapter.component.config["tokens"] == (257 if "full" in name else 16 if "plus" in name else 4)


@pytest.mark.parametrize("name", ["ViT-H", "ViT-bigG"])
def test_the_usual_encoders_are_known_by_their_weights_alone(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint.write_image_encoder(tmp_path / name, name, dtype="fp16", seed=None)
    file = (folder / "model.safetensors").rename(tmp_path / "clip.safetensors")
    found = read_encoder(file)
    assert found.title == f"CLIP {name}/14" and found.component.files == (str(file),)
    assert found.component.config == make_checkpoint.image_encoder_config(name)
    make_checkpoint.write_image_encoder(tmp_path / "tiny")
    with pytest.raises(BadFile, match="none of the image encoders that sdcli knows by their weights alone"):
        read_encoder(tmp_path / "tiny" / "model.safetensors")
    with pytest.raises(BadFile, match="an IP-Adapter, not an image encoder"):
        read_encoder(file_of(tmp_path / "ip.safetensors", "sd15", "plain", "ViT-H"))


@pytest.mark.parametrize(
    ("name", "encoder", "said"),
    [
        ("models/sd15-plain-ViT-H", "sdxl_models",
         "takes 1024 numbers for an image, as CLIP ViT-H/14 gives them; .* is CLIP ViT-bigG/14, which gives 1280"),
        ("sdxl_models/sdxl-plus-ViT-H", "sdxl_models",
         "takes 1280 numbers for each part of an image, as CLIP ViT-H/14 gives them; .* ViT-bigG/14, which gives 1664"),
        ("sdxl_models/sdxl-plain-ViT-bigG", "models",
         "takes 1280 numbers for an image, as CLIP ViT-bigG/14 gives them; .* is CLIP ViT-H/14, which gives 1024"),
    ],
)  # fmt: skip
def test_another_encoder_is_refused_with_both_names(repository: Path, name: str, encoder: str, said: str) -> None:
    adapter = read(repository / f"{name}.safetensors")
    with pytest.raises(BadFile, match=said):
        with_encoder(adapter, repository / encoder / "image_encoder")


def test_without_an_encoder_it_is_said_which_is_needed(tmp_path: Path) -> None:
    adapter = read(file_of(tmp_path / "deep" / "ip.safetensors", "sd15", "plain", "ViT-H"))
    with pytest.raises(ModelMissing, match="as CLIP ViT-H/14 gives them") as refused:
        with_encoder(adapter, None)
    assert "--reference-encoder" in refused.value.hint


def tiny(tmp_path: Path, family: str) -> Model:
    return resolve.at(make_checkpoint.write_folder(tmp_path / f"tiny-{family}", family, tiny=True))


def test_one_for_another_family_or_another_unet_is_refused(tmp_path: Path) -> None:
    model = tiny(tmp_path, "sd15")
    check_fits(read(make_checkpoint.write_ip_adapter(tmp_path / "own.safetensors", "sd15", tiny=True)), model)
    large = read(file_of(tmp_path / "large.safetensors", "sdxl", "plain", "ViT-H"))
    with pytest.raises(BadFile, match=r"large is an IP-Adapter for SDXL; tiny-sd15 is Stable Diffusion 1\.5"):
        check_fits(large, model)
    other = read(file_of(tmp_path / "other.safetensors", "sd15", "plain", "ViT-H"))
    with pytest.raises(BadFile, match="made for another UNet than that of tiny-sd15: its tokens have 768 numbers"):
        check_fits(other, model)


def test_style_and_layout_are_known_for_sdxl_only(tmp_path: Path) -> None:
    check_layers("all", tiny(tmp_path, "sd15"))
    check_layers("style", tiny(tmp_path, "sdxl"))
    with pytest.raises(Usage, match=r"an image's style enters is known for SDXL only; tiny-sd15 is Stable Diffusion"):
        check_layers("style", tiny(tmp_path, "sd15"))
    with pytest.raises(Usage, match="tiny-sdxl has no layer where an image's layout enters"):
        check_layers("layout", tiny(tmp_path, "sdxl"))


KEYS = {"ip_adapter.1.to_k_ip.weight": [320, 768], "ip_adapter.1.to_v_ip.weight": [320, 768]}
PLAIN = {"image_proj.proj.weight": [3072, 1024], "image_proj.norm.weight": [768]}
REFUSED: dict[str, tuple[make.Shapes, str]] = {
    "FaceID": (
        {**KEYS, "image_proj.proj.0.weight": [1024, 512], "image_proj.proj.2.weight": [3072, 1024],
         "image_proj.norm.weight": [768]},
        "an IP-Adapter FaceID",
    ),
    "FaceID Plus": ({**KEYS, "image_proj.perceiver_resampler.proj_in.weight": [768, 1280]}, "an IP-Adapter FaceID"),
    "FaceID with a LoRA": ({**KEYS, "ip_adapter.0.to_q_lora.down.weight": [128, 320]}, "an IP-Adapter FaceID"),
    "a LoRA": ({"lora_unet_down_blocks_0_x_attn2_to_k.lora_down.weight": [4, 768]}, "a LoRA, not an IP-Adapter"),
    "a ControlNet": ({"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3]}, "a ControlNet, not an IP-Adapter"),
    "an encoder": ({"vision_model.embeddings.class_embedding": [1280]}, "an image encoder, not an IP-Adapter"),
    "no layers": (PLAIN, "an incomplete IP-Adapter"),
    "no tokens": (KEYS, "an incomplete IP-Adapter"),
    "half a layer": ({**PLAIN, "ip_adapter.1.to_k_ip.weight": [320, 768]}, "an incomplete IP-Adapter"),
    "a layer missing": (
        {**PLAIN, "ip_adapter.3.to_k_ip.weight": [320, 768], "ip_adapter.3.to_v_ip.weight": [320, 768]},
        "an incomplete IP-Adapter",
    ),
    "a bias missing": ({**KEYS, **PLAIN}, "million parameters"),
    "half a resampler": ({**KEYS, "image_proj.latents": [1, 16, 768]}, "an incomplete IP-Adapter"),
    "nothing": ({}, "not an IP-Adapter"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_else_it_may_be_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    shapes, said = REFUSED[name]
    with pytest.raises(BadFile) as refused:
        read(make.file(tmp_path / "x.safetensors", shapes))
    assert said in refused.value.message and refused.value.hint


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ip-adapter_sd15.bin").write_bytes(b"PK\x03\x04" + bytes(600))
    with pytest.raises(SdcliError):
        read(tmp_path / "ip-adapter_sd15.bin")
    folder = make_checkpoint.write_image_encoder(tmp_path / "image_encoder")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unsafe):
        read_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["CLIPModel"]}, "is a CLIPModel, not a CLIPVisionModelWithProjection"),
        ({"num_channels": 4}, "num_channels should be 3"),
        ({"hidden_act": "nonsense"}, "hidden_act should be one of"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"patch_size": 64}, "patch_size is too large"),
        ({"num_hidden_layers": 30}, "not the same model"),
        ({"auto_map": {}}, "refused"),
    ],
)
def test_an_encoder_that_transformers_could_not_build_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = make_checkpoint.write_image_encoder(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SdcliError) as refused:
        read_encoder(folder)
    assert said in refused.value.message


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="there is no folder"):
        read_encoder(tmp_path / "nothing")


def test_layers_of_style_are_some_of_all() -> None:
    names = ["up_blocks.0.attentions.1.transformer_blocks.0.attn2", "down_blocks.2.attentions.1.x.attn2", "mid_block.x"]
    assert [[reference.acts_in(which, name) for name in names] for which in ("all", "style", "layout")] == [
        [True, True, True], [True, False, False], [False, True, False]
    ]  # fmt: skip
