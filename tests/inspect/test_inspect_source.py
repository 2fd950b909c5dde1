"""What a name, a folder or a file turns out to be; what is missing in it is named."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspect_files import lora, original, source_of, write

from sdcli import data
from sdcli.errors import BadFile, ModelMissing, SdcliError, Unsafe
from sdcli.inspect import guess, source
from sdcli.inspect.facts import At, Source, inspect, native_size
from sdcli.models import keys
from sdcli.models.expected import described
from sdcli.models.unet import analyse

SMALL = described(
    "unet",
    {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "layers_per_block": 1,
    },
)
HEADER = 24_000  # bytes of a file of SMALL that are mutated: its length and header


@pytest.mark.parametrize("name", ["sd15", "SDXL", "sd2", "refiner", "unet2015"])
def test_known_families_need_no_files(name: str) -> None:
    family = source_of(name)
    assert (family.kind, family.family, family.whole) == ("known", name.lower(), True)
    width, height = native_size(family)
    assert inspect(family, At(width=width, height=height)).unet.parameters > 30_000_000


def test_the_builtin_model_is_shown_or_reported_missing() -> None:
    if data.builtin_model() is None:
        with pytest.raises(ModelMissing, match="no built-in model"):
            source.find("builtin")
    else:
        assert source_of("builtin").family == "builtin"


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "refiner"])
def test_both_layouts_and_a_bare_unet_are_the_same_family(family: str, tmp_path: Path) -> None:
    shapes = guess.expected(family)
    files = {
        "checkpoint": original(shapes) | {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)},
        "bare": original(shapes, ""),
        "diffusers": dict(shapes),
        "prefixed": {f"unet.{name}": shape for name, shape in shapes.items()},
    }
    for name, tensors in files.items():
        one = source_of(write(tmp_path / f"{name}.safetensors", tensors))
        assert (one.family, one.missing, one.unexpected, one.mismatched) == (family, (), (), ())
        assert one.stored_dtypes == {"fp16": analyse(one.config, height=8, width=8).parameters}


def test_a_checkpoint_names_what_is_beside_its_unet(tmp_path: Path) -> None:
    tensors = original(guess.expected("sd15")) | {
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    }
    one = source_of(write(tmp_path / "whole.safetensors", tensors))
    assert one.kind == "checkpoint"
    assert one.beside == ("VAE 0.0 M", "text encoder 37.9 M")
    assert one.stored_bytes == 2 * 859_520_964


def test_nine_input_channels_are_an_inpainting_unet(tmp_path: Path) -> None:
    shapes = guess.expected("sd15") | {"conv_in.weight": (320, 9, 3, 3)}
    one = source_of(write(tmp_path / "inpaint.safetensors", original(shapes)))
    assert one.family == "sd15"
    assert one.title == "UNet of Stable Diffusion 1.5, 9 input channels"
    assert one.whole


def test_a_missing_tensor_and_one_of_another_shape_are_named(tmp_path: Path) -> None:
    shapes = dict(guess.expected("sd15"))
    del shapes["mid_block.resnets.0.conv1.weight"]
    shapes["conv_out.weight"] = (4, 320, 1, 1)
    shapes["stray"] = (3,)
    one = source_of(write(tmp_path / "hurt.safetensors", shapes))
    assert one.missing == ("mid_block.resnets.0.conv1.weight",)
    assert [(m.name, m.shape, m.expected) for m in one.mismatched] == [
        ("conv_out.weight", (4, 320, 1, 1), (4, 320, 3, 3))
    ]
    assert one.unexpected == ("stray",)
    assert isinstance(one.fault, BadFile)
    assert "mid_block.resnets.0.conv1.weight" in one.fault.message
    assert "[4, 320, 1, 1], expected [4, 320, 3, 3]" in one.fault.message


def test_a_file_cut_off_is_still_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.safetensors", original(guess.expected("sd15")))
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)
    one = source_of(path)
    assert one.family == "sd15"
    assert one.fault is not None
    assert "cut off" in one.fault.message
    assert not one.missing


def test_a_folder_is_read_from_its_config_and_headers(tmp_path: Path) -> None:
    unet, vae = tmp_path / "model" / "unet", tmp_path / "model" / "vae"
    unet.mkdir(parents=True)
    vae.mkdir()
    (unet / "config.json").write_text(json.dumps(data.component_config("sd15", "unet")), encoding="utf-8")
    (vae / "config.json").write_text(json.dumps({"block_out_channels": [1, 2, 3]}), encoding="utf-8")
    write(unet / "diffusion_pytorch_model.safetensors", guess.expected("sd15"), "F32")
    one = source_of(tmp_path / "model")
    assert (one.kind, one.family, one.stored_dtypes) == ("folder", "sd15", {"fp32": 859_520_964})
    assert one.pixels_per_latent == 4
    assert source_of(unet / "config.json").kind == "config"
    assert source_of(unet / "diffusion_pytorch_model.safetensors").kind == "unet-file"


def test_shards_are_joined_and_a_missing_one_is_named(tmp_path: Path) -> None:
    shapes = list(guess.expected("sd15").items())
    parts = {"a-1.safetensors": dict(shapes[:300]), "a-2.safetensors": dict(shapes[300:])}
    for name, tensors in parts.items():
        write(tmp_path / name, tensors)
    table = {"weight_map": {tensor: name for name, tensors in parts.items() for tensor in tensors}}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(table), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(data.component_config("sd15", "unet")), encoding="utf-8")
    assert source_of(tmp_path).whole
    (tmp_path / "a-2.safetensors").unlink()
    hurt = source_of(tmp_path)
    assert isinstance(hurt.fault, ModelMissing)
    assert len(hurt.missing) == len(parts["a-2.safetensors"])


def test_a_hub_id_is_looked_up_in_the_cache_only(own_folders: Path) -> None:
    snapshot = own_folders / "huggingface" / "hub" / "models--someone--model" / "snapshots" / "abcdef0123" / "unet"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(data.component_config("sdxl", "unet")), encoding="utf-8")
    one = source_of("someone/model")
    assert (one.kind, one.family, one.origin) == ("hub", "sdxl", "someone/model @abcdef0 in the Hub cache")
    with pytest.raises(ModelMissing, match="not in the Hub cache"):
        source.find("someone/else")
    assert source_of("runwayml/stable-diffusion-v1-5").family == "sd15"


def test_a_lora_is_distinguished_from_a_model(tmp_path: Path) -> None:
    result = source.find(str(write(tmp_path / "l.safetensors", lora("sdxl", 8))))
    assert isinstance(result, source.LoraFile)
    assert result.family == "sdxl"


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.down.0.x": (1,)}, "a VAE"),
        ({"double_blocks.0.img_attn.qkv.weight": (8, 8), "single_blocks.0.linear1.weight": (8, 8)}, "FLUX"),
        ({"joint_blocks.0.x": (8, 8)}, "Stable Diffusion 3"),
        ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "text encoder"),
        ({"something": (3, 3)}, "unknown kind"),
    ],
)
def test_a_file_without_a_unet_is_named_for_what_it_is(
    tensors: dict[str, tuple[int, ...]], named: str, tmp_path: Path
) -> None:
    with pytest.raises(BadFile, match=named) as caught:
        source.find(str(write(tmp_path / "x.safetensors", tensors)))
    assert "parameters" in caught.value.message or "tensors" in caught.value.message


def test_other_architectures_and_broken_configs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, named in (
        ('{"_class_name": "FluxTransformer2DModel", "num_layers": 19}', "FluxTransformer2DModel.*num_layers 19"),
        ('{"_class_name": "UNet2DConditionModel", "down_block_types": ["KDownBlock2D"]}', "KDownBlock2D"),
        ("[1]", "not a JSON object"),
        ("{", "is not JSON"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BadFile, match=named):
            source.find(str(path))


def test_an_absent_model_is_missing_and_a_pickle_is_unsafe(tmp_path: Path) -> None:
    for name in ("sd99", str(tmp_path / "gone.safetensors"), str(tmp_path)):
        with pytest.raises(ModelMissing):
            source.find(name)
    pickle = tmp_path / "model.safetensors"
    pickle.write_bytes(b"\x80\x04\x95" + b"x" * 100)
    with pytest.raises(Unsafe):
        source.find(str(pickle))


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "refiner"])
def test_original_names_lead_back_to_their_own(family: str) -> None:
    shapes = guess.expected(family)
    there = original(shapes, "")
    back = keys.rename("unet", there)
    assert {name: origin.name for name, origin in back.items()} == dict(zip(shapes, there, strict=True))


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "refiner"])
def test_a_config_is_read_back_from_shapes_alone(family: str) -> None:
    config = guess.config_of(guess.expected(family))
    side = {"height": 64, "width": 64}
    ours, theirs = analyse(config, **side), analyse(data.component_config(family, "unet"), **side)
    assert ours.leaves == theirs.leaves


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_mutated_set_of_tensors_is_understood_or_refused(seed: int) -> None:
    dice = random.Random(seed)
    shapes: dict[str, Any] = dict(guess.expected(dice.choice(["sd15", "sdxl"])))
    names = list(shapes)
    for _ in range(dice.randint(1, 400)):
        name = dice.choice(names)
        what = dice.random()
        if what < 0.5:
            shapes.pop(name, None)
        elif what < 0.8:
            shapes[name] = tuple(dice.choice([0, 1, 3, 320, 2**30]) for _ in range(dice.randint(0, 5)))
        else:
            shapes[name.replace(".0.", f".{dice.choice(['1', '9', '99', 'x'])}.", 1)] = (1,)
    try:
        guess.known_family(shapes)
        config = guess.config_of(shapes)
        analyse(config, height=8, width=8)
    except SdcliError as error:
        assert error.message


@given(st.integers(0, 10**9))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_damaged_header_is_understood_or_refused(seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "x.safetensors", SMALL)
        raw = bytearray(path.read_bytes())
        for _ in range(dice.randint(1, 12)):
            position = dice.randrange(HEADER)
            if dice.random() < 0.3:
                del raw[position : position + dice.randint(1, 60)]
            else:
                raw[position] = dice.choice(b'0129[]{}:,"\x00\xff.abw')
        path.write_bytes(bytes(raw))
        try:
            result = source.find(str(path))
            if isinstance(result, Source):
                inspect(result, At(width=64, height=64))
        except SdcliError as error:
            assert error.message
