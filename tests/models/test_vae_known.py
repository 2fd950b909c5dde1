"""The VAE's published figures: one for SD1.5 and SDXL alike."""

from __future__ import annotations

import pytest

from sdcli import data
from sdcli.errors import BadFile, Usage
from sdcli.models import vae

MEBI = 2**20


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_both_families_share_one_vae(family: str) -> None:
    config = data.component_config(family, "vae")
    assert vae.parameters(config) == 83_653_863
    assert vae.scale(config) == 8


@pytest.mark.parametrize(("side", "decoding", "encoding"), [(512, 1257.3, 558.3), (1024, 5235.2, 2439.5)])
def test_work_has_its_known_totals(side: int, decoding: float, encoding: float) -> None:
    config = data.component_config("sd15", "vae")
    assert round(vae.decode(config, height=side, width=side).macs / 1e9, 1) == decoding
    assert round(vae.encode(config, height=side, width=side).macs / 1e9, 1) == encoding


def test_decoding_peaks_are_the_known_ones() -> None:
    config = data.component_config("sdxl", "vae")
    assert vae.decode(config, height=512, width=512).activation_peak(2) / MEBI == pytest.approx(384, rel=0.01)
    assert vae.decode(config, height=1024, width=1024).activation_peak(2) / MEBI == pytest.approx(1536, rel=0.01)
    for tile, expected in ((512, 389), (256, 106)):
        tiled = vae.decode_tiled(config, height=1024, width=1024, tile=tile)
        assert tiled.activation_peak(2) / MEBI == pytest.approx(expected, rel=0.01)


def test_an_image_within_one_tile_is_decoded_whole() -> None:
    config = data.component_config("sd15", "vae")
    assert vae.decode_tiled(config, height=512, width=384) == vae.decode(config, height=512, width=384)


def test_smaller_tiles_need_less_memory_and_more_work() -> None:
    config = data.component_config("sdxl", "vae")
    whole = vae.decode(config, height=1536, width=1024)
    large = vae.decode_tiled(config, height=1536, width=1024, tile=512)
    small = vae.decode_tiled(config, height=1536, width=1024, tile=256)
    assert whole.peak_elements > large.peak_elements > small.peak_elements
    assert small.macs > large.macs


def test_another_kind_of_vae_is_named() -> None:
    config = data.component_config("sd15", "vae")
    with pytest.raises(BadFile, match="AutoencoderTiny"):
        vae.decode({**config, "_class_name": "AutoencoderTiny"}, height=512, width=512)
    with pytest.raises(BadFile, match="AttnUpDecoderBlock2D"):
        vae.decode({**config, "up_block_types": ["AttnUpDecoderBlock2D"] * 4}, height=512, width=512)
    with pytest.raises(Usage):
        vae.decode(config, height=4, width=512)
