"""A name becomes a model, or an error that says what it is instead and what to type."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from sdcli import data
from sdcli.errors import BadFile, ModelMissing, SdcliError, Unsafe
from sdcli.models.headers import read_header
from sdcli.models.kinds import kind_of
from sdcli.models.resolve import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
VAE = {"first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3], "first_stage_model.encoder.down.0.x": [1]}


def tensors(
    path: Path, shapes: Mapping[str, list[int]], *, dtype: str = "F16", metadata: Mapping[str, str] = {}
) -> Path:
    """A .safetensors file of these shapes; its data is a hole on the disk."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        size = {"F16": 2, "F32": 4}[dtype]
        for side in shape:
            size *= side
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(table).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


def unet(width: int, channels: int = 4) -> dict[str, list[int]]:
    return {
        UNET + "input_blocks.0.0.weight": [320, channels, 3, 3],
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, width],
    }


SD15 = {**unet(768), **VAE, TEXT: [3072, 768]}
SDXL = {
    **unet(2048), **VAE, "conditioner.embedders.0.transformer.text_model.x": [1],
    "conditioner.embedders.1.model.ln_final.weight": [1280],
}  # fmt: skip


def diffusers_folder(path: Path, family: str = "sd15", **index: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    table = json.loads((data.component_folder(family) / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**table, **index}))
    parts = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    if family == "sdxl":
        parts["text_encoder_2"] = "model"
    for part, stem in parts.items():
        tensors(path / part / f"{stem}.safetensors", {"a": [3, 5]}, dtype="F32")
        (path / part / "config.json").write_text(json.dumps(data.component_config(family, part)))
    (path / "scheduler").mkdir(exist_ok=True)
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(data.component_config(family, "scheduler")))
    return path


# --- single files


@pytest.mark.parametrize(("shapes", "kind"), [(SD15, "sd15"), (SDXL, "sdxl")])
def test_a_checkpoint_is_a_model_of_its_family(tmp_path: Path, shapes: dict[str, list[int]], kind: str) -> None:
    model = resolve(str(tensors(tmp_path / "dream.safetensors", shapes)))
    assert (model.name, model.kind, model.family, model.layout) == ("dream", kind, kind, "original")
    assert model.components["unet"].stored_dtype == "fp16"
    assert model.prediction == "epsilon"


def test_v_prediction_and_zero_snr_are_read_from_the_marks_in_the_file(tmp_path: Path) -> None:
    model = resolve(str(tensors(tmp_path / "v.safetensors", {**SDXL, "v_pred": [], "ztsnr": []})))
    assert (model.prediction, model.zero_snr) == ("v_prediction", True)
    assert model.scheduler["prediction_type"] == "v_prediction"


OTHERS = {
    "sd15-inpainting": {**SD15, **unet(768, 9)},
    "sd2": {**SD15, **unet(1024)},
    "refiner": {**SDXL, **unet(1280)},
    "flux": {"double_blocks.0.img_attn.qkv.weight": [4, 4]},
    "sd3": {"model.diffusion_model.joint_blocks.0.x.weight": [4, 4]},
    "lora": {"lora_unet_down_blocks_0_attn2_to_k.lora_down.weight": [4, 768], "lora_unet_x.alpha": []},
    "vae": {"decoder.conv_in.weight": [512, 4, 3, 3], "encoder.down_blocks.0.x": [1], "decoder.up_blocks.0.x": [1]},
    "unet": {"conv_in.weight": [320, 4, 3, 3], "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": [320, 768]},
    "controlnet": {"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3]},
    "embedding": {"emb_params": [4, 768]},
    "text-encoder": {"text_model.embeddings.token_embedding.weight": [49408, 768]},
    "unknown": {"something.else": [4, 4]},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_drawn_with_is_named_and_never_guessed(tmp_path: Path, kind: str) -> None:
    path = tensors(tmp_path / "x.safetensors", OTHERS[kind])
    assert kind_of(read_header(path)).kind == kind
    with pytest.raises(BadFile) as caught:
        resolve(str(path))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("shapes", "metadata", "family"),
    [
        ({"lora_unet_down_attn2_to_k.lora_down.weight": [4, 768]}, {}, "sd15"),
        ({"lora_unet_down_attn2_to_k.lora_down.weight": [4, 2048]}, {}, "sdxl"),
        ({"unet.down_blocks.0.attn2.to_k.lora_A.weight": [4, 1024]}, {}, "sd2"),
        ({"lora_te_text_model_x.lora_down.weight": [4, 7]}, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"lora_te2_text_model_x.lora_down.weight": [4, 7]}, {}, "sdxl"),
        ({"lora_te_text_model_x.lora_down.weight": [4, 7]}, {}, ""),
    ],
)
def test_a_lora_says_which_base_it_is_for(
    tmp_path: Path, shapes: dict[str, list[int]], metadata: dict[str, str], family: str
) -> None:
    kind = kind_of(read_header(tensors(tmp_path / "l.safetensors", shapes, metadata=metadata)))
    assert (kind.kind, kind.family) == ("lora", family)


def test_a_checkpoint_without_its_text_encoder_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="text_encoder"):
        resolve(str(tensors(tmp_path / "x.safetensors", {**unet(768), **VAE})))


# --- folders


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_diffusers_folder_is_a_model(tmp_path: Path, family: str) -> None:
    model = resolve(str(diffusers_folder(tmp_path / "mine", family)))
    assert (model.name, model.family, model.source) == ("mine", family, "folder")
    assert model.components["unet"].stored_bytes == 60
    assert model.components["unet"].stored_dtype == "fp32"
    assert all(Path(file).is_file() for part in model.components.values() for file in part.files)


def test_the_half_precision_variant_is_taken_where_there_are_two(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "mine")
    tensors(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"a": [3, 5]})
    assert resolve(str(folder)).components["unet"].stored_dtype == "fp16"


def test_shards_are_found_through_their_table(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "mine")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tensors(folder / "unet" / "one.safetensors", {"a": [2]})
    tensors(folder / "unet" / "two.safetensors", {"b": [3]})
    table = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps(table))
    assert resolve(str(folder)).components["unet"].parameters == 5
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(Unsafe):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ({"_class_name": "FluxPipeline"}, BadFile),
        ({"unet": ["evil", "UNet2DConditionModel"]}, Unsafe),
        ({"unet": ["diffusers", "Exec"]}, Unsafe),
        ({"extra": ["os", "system"]}, Unsafe),
        ({"custom_pipeline": "x"}, Unsafe),
        ({"auto_map": {}}, Unsafe),
    ],
)
def test_an_index_names_no_code(tmp_path: Path, index: dict[str, object], error: type[SdcliError]) -> None:
    with pytest.raises(error):
        resolve(str(diffusers_folder(tmp_path / "mine", **index)))


@pytest.mark.parametrize("key", ["_attn_implementation_internal", "trust_remote_code", "auto_map"])
def test_a_config_that_could_make_code_run_is_refused(tmp_path: Path, key: str) -> None:
    folder = diffusers_folder(tmp_path / "mine")
    (folder / "text_encoder" / "config.json").write_text(json.dumps({key: "x"}))
    with pytest.raises(Unsafe):
        resolve(str(folder))


def test_a_folder_with_pickles_only_is_refused_as_unsafe(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "mine")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(Unsafe):
        resolve(str(folder))


def test_a_folder_of_checkpoints_says_which_to_take(tmp_path: Path) -> None:
    tensors(tmp_path / "dream.safetensors", SD15)
    with pytest.raises(ModelMissing) as caught:
        resolve(str(tmp_path))
    assert "dream.safetensors" in caught.value.hint


def test_a_folder_of_another_kind_behind_a_familiar_index_is_named(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "mine")
    config = {**data.component_config("sd15", "unet"), "cross_attention_dim": 1024}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFile, match="Stable Diffusion 2"):
        resolve(str(folder))


# --- names, in their order


@pytest.mark.parametrize(
    ("alias", "size"),
    [
        ("sd15", 2 * (859_520_964 + 123_060_480 + 83_653_863)),
        ("sdxl", 2 * (2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863)),
    ],
)
def test_an_alias_is_known_before_anything_is_fetched(alias: str, size: int) -> None:
    model = resolve(alias)
    assert (model.cached, model.path, model.family, model.download_bytes) == (False, None, alias, size)
    assert model.revision is not None and len(model.revision) == 40


def test_the_vanished_repository_of_sd15_still_means_it() -> None:
    assert resolve("runwayml/stable-diffusion-v1-5").name == "sd15"


def test_the_hub_cache_is_read_without_a_network(tmp_path: Path) -> None:
    place = tmp_path / "models--me--dream"
    diffusers_folder(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    model = resolve("me/dream", hub=tmp_path)
    assert (model.name, model.source, model.revision, model.cached) == ("dream", "hub", COMMIT, True)
    assert resolve("me/dream", revision=COMMIT, hub=tmp_path).revision == COMMIT
    with pytest.raises(ModelMissing):
        resolve("me/dream", revision="other", hub=tmp_path)


def test_a_file_in_an_added_folder_has_a_short_name(tmp_path: Path) -> None:
    tensors(tmp_path / "dream_8.safetensors", SD15)
    assert resolve("dream_8", folders=[tmp_path]).family == "sd15"
    with pytest.raises(ModelMissing) as caught:
        resolve("dream_9", folders=[tmp_path])
    assert caught.value.hint.endswith("-m dream_8")


def test_a_path_wins_over_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    diffusers_folder(tmp_path / "sdxl", "sd15")
    assert resolve("sdxl").family == "sd15"


@pytest.mark.parametrize(
    "name", ["./absent", "absent.safetensors", "~/absent", "a/b/c", "x\0y", "nope", "", "me/absent", "-" * 5000]
)
def test_what_is_not_there_is_said_with_a_way_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(SdcliError) as caught:
        resolve(name, hub=tmp_path)
    assert caught.value.code in (2, 3)
    assert caught.value.hint


def test_without_a_built_in_model_its_name_says_so() -> None:
    with pytest.raises(ModelMissing, match="no built-in model"):
        resolve("builtin")
