"""Upscalers in every layout they come in, recognised by headers alone; what only enlarges images too is refused."""

from __future__ import annotations

import itertools
import shlex
import subprocess
from pathlib import Path
from typing import Any

import model_files as make
import pytest

from scripts import make_checkpoint
from sdcli.errors import BadFile, ModelMissing, Unsafe
from sdcli.models import upscaler, upscaler_walk
from sdcli.models.headers import read_header
from sdcli.models.kinds import kind_of

FOLDED: dict[str, Any] = {"scale": 2, "unshuffle": 2}  # as Real-ESRGAN's ×2
LAYOUTS = ("real-esrgan", "esrgan", "numbered")
PREFIXES = ("", "params_ema.", "params.", "module.", "model.")
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "RealESRGAN_x4plus": ({}, 16_697_987), "RealESRGAN_x2plus": (FOLDED, 16_703_171),
    "RealESRGAN_x4plus_anime_6B": ({"blocks": 6}, 4_467_779), "realesr-general-x4v3": ({"compact": True}, 1_213_296),
    "realesr-animevideov3": ({"compact": True, "convolutions": 16}, 621_424),
}  # fmt: skip


def file_of(path: Path, **how: Any) -> Path:
    """Full size, with holes in place of weights, unless it is to be tiny."""
    return make_checkpoint.write_upscaler(path, **{"dtype": "fp16", "seed": None, **how})


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_come_out(tmp_path: Path, name: str) -> None:
    changes, parameters = SIZES[name]
    found = upscaler.read(file_of(tmp_path / f"{name}.safetensors", **changes))
    assert (found.name, found.component.parameters) == (name, parameters)
    assert (found.component.stored_bytes, found.component.stored_dtype) == (2 * parameters, "fp16")
    assert found.component.config == make_checkpoint.upscaler_config(**changes)
    assert kind_of(read_header(tmp_path / f"{name}.safetensors")).kind == "upscaler"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "changes",
    [{}, FOLDED, {"scale": 1, "unshuffle": 4}, {"scale": 1, "doublings": 0}, {"scale": 2, "doublings": 1},
     {"scale": 8, "doublings": 3}, {"blocks": 3, "features": 16, "growth": 12}],
)  # fmt: skip
def test_a_file_gives_its_config_in_every_layout(tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
    found = upscaler.read(file_of(tmp_path / "x.safetensors", layout=layout, tiny=True, **changes))
    assert found.component.config == make_checkpoint.upscaler_config(tiny=True, **changes)
    assert found.scale == changes.get("scale", 4)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("how", [{"layout": "real-esrgan"}, {"layout": "esrgan"}, {"compact": True, "scale": 2}])
def test_what_wraps_a_net_is_taken_off(tmp_path: Path, prefix: str, how: dict[str, Any]) -> None:
    found = upscaler.read(file_of(tmp_path / "x.safetensors", prefix=prefix, tiny=True, **how))
    assert found.component.parameters == sum(
        leaf.parameters for leaf in upscaler_walk.analyse(found.component.config, height=8, width=8).leaves
    )


def test_of_weights_that_are_there_twice_the_averaged_ones_count(tmp_path: Path) -> None:
    config = make_checkpoint.upscaler_config(tiny=True)
    both = {
        f"{prefix}{name}": make_checkpoint.Planned(tensor.shape, None)
        for prefix in ("params.", "params_ema.")
        for name, tensor in make_checkpoint.planned("upscaler", config, None).items()
    }
    make_checkpoint.write_safetensors(tmp_path / "x.safetensors", both, "fp32")
    found = upscaler.read(tmp_path / "x.safetensors")
    alone = upscaler.read(file_of(tmp_path / "y.safetensors", tiny=True))
    assert found.component.parameters == alone.component.parameters


CONV = [8, 3, 3, 3]
REFUSED: dict[str, tuple[make.Shapes, str]] = {
    "SwinIR": (
        {"conv_first.weight": CONV, "layers.0.residual_group.blocks.0.attn.relative_position_bias_table": [1, 6]},
        "is SwinIR, an upscaler of a kind that sdcli cannot use",
    ),
    "Swin2SR": ({"layers.0.residual_group.blocks.0.attn.logit_scale": [6, 1, 1]}, "is Swin2SR, an upscaler"),
    "HAT": ({"layers.0.residual_group.overlap_attn.qkv.weight": [9, 3]}, "is HAT, an upscaler"),
    "DAT": ({"layers.0.blocks.0.attn.channel_interaction.1.weight": [9, 3, 1, 1]}, "is DAT, an upscaler"),
    "OmniSR": ({"residual_layer.0.residual_layer.0.layer.0.fn.0.weight": [64, 64, 1, 1]}, "is OmniSR, an upscaler"),
    "SPAN": ({"block_1.c1_r.sk.weight": [48, 48, 1, 1]}, "is SPAN, an upscaler"),
    "ESRGAN+": ({"model.0.weight": CONV, "model.1.sub.0.RDB1.conv1x1.weight": [4, 8, 1, 1]}, "is ESRGAN+, an upscaler"),
    "a LoRA": (
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": [4, 768]},
        "is a LoRA, not an upscaler",
    ),
    "a model": (make.checkpoint("sd15"), "is Stable Diffusion 1.5, not an upscaler"),
    "something": ({"one.weight": [4], "two.weight": [4]}, "is not an ESRGAN-type upscaler; it contains one.weight"),
    "nothing": ({}, "it contains nothing"),
    "grey images": (
        {"conv_first.weight": [8, 1, 3, 3], "body.0.rdb1.conv1.weight": [4, 8, 3, 3]}, "is not an ESRGAN-type upscaler"
    ),
    "a part": ({"conv_first.weight": CONV, "body.0.rdb1.conv1.weight": [4, 8, 3, 3]}, "an incomplete upscaler"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_other_files_are_refused_by_name(tmp_path: Path, what: str) -> None:
    shapes, message = REFUSED[what]
    with pytest.raises(BadFile) as refused:
        upscaler.read(make.file(tmp_path / "x.safetensors", shapes))
    assert message in refused.value.message and refused.value.hint == upscaler.HINT


@pytest.mark.parametrize(
    ("name", "shape"), [("conv_hr.weight", [8, 9, 3, 3]), ("body.0.rdb2.conv3.bias", [5]), ("attention.weight", [8, 8])]
)
def test_a_variant_is_told_by_the_tensor_that_differs(tmp_path: Path, name: str, shape: list[int]) -> None:
    config = make_checkpoint.upscaler_config(tiny=True)
    shapes = {key: list(tensor.shape) for key, tensor in make_checkpoint.planned("upscaler", config, None).items()}
    with pytest.raises(BadFile, match=f"a variant of ESRGAN that sdcli cannot use: its {name} has the shape"):
        upscaler.read(make.file(tmp_path / "x.safetensors", shapes | {name: shape}))


def test_one_tensor_less_is_incomplete(tmp_path: Path) -> None:
    config = make_checkpoint.upscaler_config(tiny=True)
    shapes = {key: list(tensor.shape) for key, tensor in make_checkpoint.planned("upscaler", config, None).items()}
    del shapes["conv_body.bias"]
    with pytest.raises(BadFile, match=r"is an incomplete upscaler: conv_body\.bias not found"):
        upscaler.read(make.file(tmp_path / "x.safetensors", shapes))


def test_no_file_is_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        upscaler.read(tmp_path / "x.safetensors")


def test_a_pickle_is_refused_with_a_line_that_makes_a_file_of_it(tmp_path: Path) -> None:
    """As most upscalers are passed around. The line reads it as numbers alone."""
    import torch

    config = make_checkpoint.upscaler_config(tiny=True)
    weights = {name: tensor.make() for name, tensor in make_checkpoint.planned("upscaler", config, 0).items()}
    path = tmp_path / "it's 4x.pth"
    torch.save({"params_ema": weights}, path)
    with pytest.raises(Unsafe) as refused:
        upscaler.read(path)
    assert "is a pickle; loading one can run code; refused" in refused.value.message
    first, line = refused.value.hint.splitlines()
    assert "safetensors" in first
    subprocess.run(shlex.split(line), check=True, capture_output=True)
    assert upscaler.read(path.with_suffix(".safetensors")).component.config == config


# --- tiles


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("tile", [32, 64, 128, 512])
def test_tiles_are_alike_and_reach_beyond_what_is_kept(tile: int, step: int) -> None:
    for length in range(step, 1200, 7 * step):
        made = upscaler_walk.spans(length, tile, step)
        assert made[0].first == 0 and made[-1].last == length
        assert all(left.last == right.first for left, right in itertools.pairwise(made))
        for span in made:
            assert span.size == made[0].size <= min(tile, length) and span.start % step == 0
            assert 0 <= span.start <= span.first < span.last <= span.start + span.size <= length
            beyond = upscaler_walk.overlap(tile)
            assert span.start == 0 or span.first - span.start >= beyond
            assert span.start + span.size == length or span.start + span.size - span.last >= beyond
    assert len(upscaler_walk.spans(512, 0)) == len(upscaler_walk.spans(512, 512)) == 1


@pytest.mark.parametrize(
    ("scale", "to", "expected"),
    [(4, (400, 400), 1), (4, (401, 400), 2), (2, (801, 10), 3), (2, (10_000, 10), 3), (1, (800, 800), 1),
     (4, (10, 10), 1)],
)  # fmt: skip
def test_a_net_goes_over_an_image_until_it_is_large_enough(scale: int, to: tuple[int, int], expected: int) -> None:
    assert upscaler_walk.times({"scale": scale}, 100, 100, to) == expected
