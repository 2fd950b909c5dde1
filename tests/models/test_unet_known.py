"""Published totals of the known UNets, and what the walk says about their shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli import data
from sdcli.errors import BadFile, SdcliError, Usage
from sdcli.models.trace import Span, beside_weights, worst_of
from sdcli.models.unet import analyse

PUBLISHED = [
    ("sd15", 64, 859_520_964, 401_637),
    ("sdxl", 128, 2_567_463_684, 3_380_618),
    ("sd2", 96, 865_910_724, 1_074_553),
    ("refiner", 128, 2_259_526_660, 3_643_005),
    ("unet2015", 572, 31_030_658, 150_428),
]


@pytest.mark.parametrize(("name", "side", "parameters", "millions"), PUBLISHED)
def test_a_known_unet_has_its_published_totals(name: str, side: int, parameters: int, millions: int) -> None:
    unet = analyse(data.component_config(name, "unet"), height=side, width=side)
    assert unet.parameters == parameters
    assert round(unet.macs / 1e6) == millions
    assert sum(leaf.parameters for leaf in unet.leaves) == parameters
    assert sum(leaf.macs for leaf in unet.leaves) == unet.macs == sum(unet.macs_by_kind.values())
    assert sum(block.parameters for block in unet.blocks) == parameters
    assert sum(block.macs for block in unet.blocks) == unet.macs
    assert max(block.elements for block in unet.blocks) == unet.peak_elements


def test_attention_is_counted_by_kind() -> None:
    kinds = analyse(data.component_config("sd15", "unet"), height=64, width=64).macs_by_kind
    assert {kind: round(macs / 1e9, 2) for kind, macs in kinds.items()} == {
        "convolution": 221.97,
        "linear": 116.64,
        "attention": 63.03,
    }


def test_the_skips_of_sd15_are_twelve_and_come_back_in_reverse() -> None:
    unet = analyse(data.component_config("sd15", "unet"), height=64, width=64)
    assert [skip.concatenated_channels for skip in unet.skips] == [
        2560, 2560, 2560, 2560, 2560, 1920, 1920, 1280, 960, 960, 640, 640,
    ]  # fmt: skip
    assert unet.skips[0].source == "down_blocks.3.resnets.1"
    assert (unet.skips[-1].source, unet.skips[-1].target) == ("conv_in", "up_blocks.3.resnets.2")
    order = [leaf.name for leaf in unet.leaves]
    produced = [max(i for i, name in enumerate(order) if name.startswith(skip.source)) for skip in unet.skips]
    assert produced == sorted(produced, reverse=True), "last in, first out"


def test_the_skips_of_sdxl_are_nine() -> None:
    unet = analyse(data.component_config("sdxl", "unet"), height=128, width=128)
    assert [skip.concatenated_channels for skip in unet.skips] == [2560, 2560, 1920, 1920, 1280, 960, 960, 640, 640]


def test_the_skips_of_2015_are_cropped_to_the_way_up() -> None:
    unet = analyse(data.component_config("unet2015", "unet"), height=572, width=572)
    assert [skip.concatenated_channels for skip in unet.skips] == [1024, 512, 256, 128]
    assert unet.skips[-1].resolution == (568, 568)
    assert unet.leaves[-1].output_shape == (1, 2, 388, 388)


def test_text_and_time_enter_where_they_do() -> None:
    unet = analyse(data.component_config("sd15", "unet"), height=64, width=64)
    assert (unet.text_enters, unet.time_enters, unet.text_channels, unet.time_channels) == (16, 22, 768, 1280)
    unet = analyse(data.component_config("sdxl", "unet"), height=128, width=128)
    assert (unet.text_enters, unet.time_enters, unet.text_channels) == (70, 17, 2048)


def test_the_activation_peak_is_the_known_one_and_grows_with_the_batch() -> None:
    config = data.component_config("sd15", "unet")
    mebibytes = [analyse(config, height=64, width=64, batch=n).activation_peak(2) / 2**20 for n in (1, 2, 4)]
    assert mebibytes == pytest.approx([65, 130, 260], rel=0.01)
    sdxl = analyse(data.component_config("sdxl", "unet"), height=128, width=128, batch=2)
    assert sdxl.activation_peak(2) / 2**20 == pytest.approx(316, rel=0.01)


@given(st.integers(1, 9), st.integers(8, 40), st.integers(8, 40))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_everything_grows_in_proportion_to_the_batch(batch: int, height: int, width: int) -> None:
    config = data.component_config("sd15", "unet")
    one, many = (analyse(config, height=height, width=width, batch=n) for n in (1, batch))
    assert many.macs == batch * one.macs
    assert many.peak_elements == batch * one.peak_elements
    assert many.parameters == one.parameters


@given(st.integers(8, 160), st.integers(8, 160))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_larger_image_never_costs_less(height: int, width: int) -> None:
    config = data.component_config("sdxl", "unet")
    small = analyse(config, height=height, width=width)
    large = analyse(config, height=height + 4, width=width)
    assert large.macs > small.macs
    assert large.peak_elements > small.peak_elements


def test_the_largest_attention_matrix_is_reported() -> None:
    unet = analyse(data.component_config("sd15", "unet"), height=64, width=64, batch=2)
    assert unet.largest_scores == 2 * 8 * 4096 * 4096


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"down_block_types": ["KDownBlock2D"] * 4}, "KDownBlock2D"),
        ({"up_block_types": ["SkipUpBlock2D"] * 4}, "SkipUpBlock2D"),
        ({"mid_block_type": "Strange"}, "Strange"),
        ({"addition_embed_type": "image_hint"}, "image_hint"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ({"block_out_channels": [320, 640]}, "block_out_channels"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"transformer_layers_per_block": 10**6}, "layers"),
        ({"block_out_channels": [320, 640, 1280, -1]}, "block_out_channels"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "up_block_types"),
        ({"layers_per_block": "\x1b[2J"}, "layers_per_block"),
    ],
)
def test_an_unknown_part_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadFile) as caught:
        analyse({**data.component_config("sd15", "unet"), **change}, height=64, width=64)
    assert named in caught.value.message
    assert "\x1b" not in caught.value.message


def test_a_size_that_the_blocks_cannot_meet_again_is_refused() -> None:
    config = data.component_config("sd15", "unet") | {"up_block_types": ["ResnetUpsampleBlock2D"] * 4}
    with pytest.raises(Usage, match="cannot run at that size"):
        analyse(config, height=65, width=64)
    with pytest.raises(Usage, match="nothing is left"):
        analyse(data.component_config("unet2015", "unet"), height=60, width=572)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    *data.component_config("sdxl", "unet"), "class_embed_type", "num_class_embeds", "encoder_hid_dim",
    "encoder_hid_dim_type", "time_embedding_type", "time_cond_proj_dim", "only_cross_attention", "conv_in_kernel",
    "reverse_transformer_layers_per_block", "mid_block_only_cross_attention", "time_embedding_dim",
    "cross_attention_norm", "attention_type", "resnet_time_scale_shift", "num_attention_heads",
]  # fmt: skip


@given(
    st.sampled_from(["sd15", "sdxl", "unet2015"]),
    st.dictionaries(st.sampled_from(KEYS), JSON | st.sampled_from([1, 2, 4, "text", "projection"]), max_size=3),
    st.integers(1, 70),
)
@settings(max_examples=600, deadline=None, derandomize=True)
def test_any_config_is_understood_or_refused_by_name(name: str, change: dict[str, Any], side: int) -> None:
    config = {**data.component_config(name, "unet"), **change}
    try:
        unet = analyse(config, height=side, width=side)
    except SdcliError as error:
        assert error.message
    else:
        assert unet.parameters > 0
        assert unet.peak_elements > 0
        assert json.loads(json.dumps(unet.macs_by_kind)) == unet.macs_by_kind


SPANS = st.lists(st.builds(Span, *[st.integers(0, 9)] * 3), min_size=1)


@given(spans=SPANS, size=st.integers(0, 4), layer=st.integers(0, 4), row=st.integers(0, 4))
def test_the_spans_that_are_kept_hold_the_worst_moment_of_all(
    spans: list[Span], size: int, layer: int, row: int
) -> None:
    kept = worst_of(spans)
    assert beside_weights(kept, size, layer=layer, row=row) == beside_weights(spans, size, layer=layer, row=row)
    assert len(kept) <= len(set(spans))


def test_few_spans_of_a_unet_are_kept() -> None:
    unet = analyse(data.component_config("sdxl", "unet"), height=128, width=128)
    assert len(unet.spans) < len(unet.leaves) / 50
