"""Two UNets side by side, and LoRAs compared with a base."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from inspect_files import lora, source_of, write

from sdcli.errors import BadFile
from sdcli.inspect import diff, guess, source
from sdcli.inspect import lora as loras
from sdcli.inspect.facts import Source
from sdcli.inspect.numbers import decoded
from sdcli.terminal import cells

SMALL = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}


def small(folder: Path, dtype: str, values: bytes = b"") -> Source:
    from sdcli.models.expected import described

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    write(folder / "diffusion_pytorch_model.safetensors", described("unet", SMALL), dtype, values)
    return source_of(folder)


def test_two_families_differ_in_structure() -> None:
    result = diff.compare(source.of_family("sd15"), source.of_family("sdxl"))
    document = diff.to_json(result)
    assert not result.identical
    assert "add_embedding.linear_1.weight" in document["only_b"]
    assert {"name": "down_blocks.1.attentions.0.proj_in.weight", "a": [640, 640, 1, 1], "b": [640, 640]} in document[
        "shape"
    ]
    assert document["values"] == []
    lines = diff.text(result, 80)
    assert max(map(cells, lines)) <= 80
    assert any("401.6 at 512×512" in line and "3,380.6 at 1024×1024" in line for line in lines)
    assert any(line.startswith("≠ down.0") for line in lines)


def test_a_family_is_identical_to_itself_and_to_its_file(tmp_path: Path) -> None:
    assert diff.compare(source.of_family("sd2"), source.of_family("sd2")).identical
    path = write(tmp_path / "sd2.safetensors", guess.expected("sd2"))
    assert diff.compare(source.of_family("sd2"), source_of(path)).identical


def test_values_are_compared_to_the_last_one(tmp_path: Path) -> None:
    first = small(tmp_path / "a", "F32")
    second = small(tmp_path / "b", "F32", struct.pack("<3f", 0.0, 0.5, -1.5))
    result = diff.compare(first, second)
    assert result.compared == len(first.tensors)
    assert [(one.name, one.max_abs) for one in result.values] == [(next(iter(first.tensors)), 1.5)]
    elements = 1
    for side in next(iter(first.tensors.values())).shape:
        elements *= side
    assert result.values[0].mean_abs == pytest.approx(2.0 / elements)
    assert diff.compare(first, small(tmp_path / "c", "F32")).identical


def test_another_dtype_is_named_and_its_values_still_compared(tmp_path: Path) -> None:
    half = struct.pack("<2e", 0.25, 2.0)
    brain = struct.pack("<2H", 0x3E80, 0x4000)  # the same two numbers in bf16
    result = diff.compare(small(tmp_path / "a", "F16", half), small(tmp_path / "b", "BF16", brain))
    assert result.values == ()
    assert {(one.a, one.b) for one in result.dtype} == {("fp16", "bf16")}
    assert not result.identical


def test_not_a_number_is_infinitely_far(tmp_path: Path) -> None:
    broken = struct.pack("<f", float("nan"))
    result = diff.compare(small(tmp_path / "a", "F32"), small(tmp_path / "b", "F32", broken))
    assert diff.to_json(result)["values"][0]["max_abs"] is None
    json.dumps(diff.to_json(result), allow_nan=False)


def test_eight_bit_floats_have_their_values() -> None:
    assert decoded(bytes([0x00, 0x38, 0x7E, 0xB8, 0x01]), "F8_E4M3").tolist() == [0.0, 1.0, 448.0, -1.0, 2.0**-9]
    assert decoded(bytes([0x3C, 0x7B, 0x7C]), "F8_E5M2").tolist() == [1.0, 57344.0, float("inf")]


@pytest.mark.parametrize(("family", "layers"), [("sd15", 128), ("sdxl", 560)])
@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_every_layer_of_a_lora_is_matched(family: str, layers: int, layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "l.safetensors", lora(family, 4, layout=layout))
    report = loras.inspect(source.find_lora(str(path)), source.of_family(family))
    assert (report.fits, report.made_for, report.unmatched) == (True, family, ())
    assert (report.unet_layers, report.ranks) == (layers, {"4": layers})
    document = loras.to_json(report)
    assert document["matched"] == layers == len(document["touched"])
    assert document["touched"][0]["name"].startswith("down_blocks.")


def test_a_lora_of_the_wrong_family_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "l.safetensors", lora("sdxl", 4))
    report = loras.inspect(source.find_lora(str(path)), source.of_family("sd15"))
    assert not report.fits
    assert report.made_for == "sdxl"
    lines = loras.text(report, 80)
    assert "wrong family: made for SDXL, not for Stable Diffusion 1.5" in lines
    assert max(map(cells, lines)) <= 80
    assert loras.inspect(source.find_lora(str(path)), None).base == "sdxl"


def test_a_lora_fits_nothing_of_the_built_in_model(tmp_path: Path) -> None:
    path = write(tmp_path / "l.safetensors", lora("sd15", 4))
    report = loras.inspect(source.find_lora(str(path)), source.of_family("builtin"))
    assert (report.base, report.fits, report.made_for) == ("builtin", False, "sd15")


def test_alpha_text_encoder_and_unmatched_layers_are_shown(tmp_path: Path) -> None:
    shapes = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": (1,),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (2, 768),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (3072, 2),
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (2, 1280, 1, 1),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (1280, 2, 1, 1),
        "lora_unet_no_such_layer.lora_down.weight": (2, 8),
        "lora_unet_no_such_layer.lora_up.weight": (8, 2),
    }
    path = write(tmp_path / "l.safetensors", shapes, "F16", struct.pack("<e", 1.5))
    report = loras.inspect(source.find_lora(str(path)), source.of_family("sd15"))
    assert (report.text_layers, report.unet_layers) == (1, 1)
    assert report.unmatched == ("lora_unet_no_such_layer",)
    assert report.touched[0].alpha == 1.5
    assert report.touched[0].name == "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert "no match: lora_unet_no_such_layer" in loras.text(report, 80)


def test_other_kinds_of_adapters_are_named(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(3):
        start = f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_attn1_to_q"
        shapes[f"{start}.alpha"] = (1,)
        shapes[f"{start}.hada_w1_a"] = (320, 8)
        shapes[f"{start}.hada_w1_b"] = (8, 320)
        shapes[f"{start}.hada_w2_a"] = (320, 8)
        shapes[f"{start}.hada_w2_b"] = (8, 320)
    report = loras.inspect(source.find_lora(str(write(tmp_path / "l.safetensors", shapes))), source.of_family("sd15"))
    assert {one.kind for one in report.touched} == {"loha"}
    assert report.ranks == {"8": 3}
    assert any(line == "kinds: loha 3" for line in loras.text(report, 80))


def test_a_model_is_not_a_lora(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", guess.expected("sd15"))
    with pytest.raises(BadFile, match="a UNet alone, not a LoRA"):
        source.find_lora(str(path))
