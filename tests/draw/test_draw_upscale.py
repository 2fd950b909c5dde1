"""Nets that enlarge images: their arithmetic written out, files in every layout, and tiles without seams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scripts import make_checkpoint
from sdcli.draw import load, upscale
from sdcli.draw.decode import RGBImage
from sdcli.draw.upscale import Made, Upscaler
from sdcli.errors import ImagesFailed
from sdcli.models import upscaler
from sdcli.models.upscaler_walk import overlap, spans

FOLDED: dict[str, Any] = {"scale": 2, "unshuffle": 2}
NETS: dict[str, dict[str, Any]] = {
    "×4": {}, "×2, folded": FOLDED, "×1, folded": {"scale": 1, "unshuffle": 4}, "×1": {"scale": 1, "doublings": 0},
    "×2": {"scale": 2, "doublings": 1}, "×8": {"scale": 8, "doublings": 3}, "two blocks": {"blocks": 2},
    "compact": {"compact": True}, "compact, ×2": {"compact": True, "scale": 2},
}  # fmt: skip


def net_of(path: Path, dtype: str = "fp32") -> Upscaler:
    found = upscaler.read(path)
    filled = load.load("upscaler", found.component, dtype=load.DTYPES[dtype], device="cpu", channels_last=True)
    net: Upscaler = filled.module
    return net


def made(tmp_path: Path, case: str, **how: Any) -> Upscaler:
    path = tmp_path / "x.safetensors"
    return net_of(make_checkpoint.write_upscaler(path, tiny=True, **NETS[case], **how))


def image(width: int, height: int, seed: int = 0) -> RGBImage:
    """Smooth, with noise."""
    rows = numpy.random.default_rng(seed).integers(0, 60, (height, width, 3))
    rows += numpy.linspace(0, 190, width, dtype=int)[None, :, None]
    return RGBImage(width, height, rows.astype(numpy.uint8).tobytes())


def enlarged(net: Upscaler, small: RGBImage, *, times: int = 1, tile: int = 0) -> RGBImage:
    *tiles, large = upscale.enlarge(net, small, times=times, tile=tile)
    assert isinstance(large, RGBImage)
    assert [one.tile for one in tiles if isinstance(one, Made)] == list(range(1, len(tiles) + 1))
    assert {one.of for one in tiles if isinstance(one, Made)} == {len(tiles)}
    return large


def pixels(large: RGBImage) -> Any:
    return numpy.frombuffer(large.pixels, numpy.uint8).reshape(large.height, large.width, 3).astype(int)


# --- the arithmetic, from the papers' figures and without the modules


def written_out(net: Upscaler, given: Tensor) -> Tensor:
    weights = net.state_dict()

    def conv(name: str, x: Tensor) -> Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def rectified(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    def dense(name: str, x: Tensor) -> Tensor:
        x1 = rectified(conv(f"{name}.conv1", x))
        x2 = rectified(conv(f"{name}.conv2", torch.cat([x, x1], 1)))
        x3 = rectified(conv(f"{name}.conv3", torch.cat([x, x1, x2], 1)))
        x4 = rectified(conv(f"{name}.conv4", torch.cat([x, x1, x2, x3], 1)))
        return x + 0.2 * conv(f"{name}.conv5", torch.cat([x, x1, x2, x3, x4], 1))

    if not hasattr(net, "conv_first"):
        x = given
        last = len(net.body) - 1
        for layer in range(0, last, 2):
            x = conv(f"body.{layer}", x)
            x = torch.where(x > 0, x, weights[f"body.{layer + 1}.weight"][None, :, None, None] * x)
        x = functional.pixel_shuffle(conv(f"body.{last}", x), net.scale)
        return x + given.repeat_interleave(net.scale, 2).repeat_interleave(net.scale, 3)
    folded, shape = net.folded, given.shape
    cells = given.reshape(1, 3, shape[2] // folded, folded, shape[3] // folded, folded).permute(0, 1, 3, 5, 2, 4)
    first = x = conv("conv_first", cells.reshape(1, -1, shape[2] // folded, shape[3] // folded))
    for block in range(len(net.body)):
        y = dense(f"body.{block}.rdb3", dense(f"body.{block}.rdb2", dense(f"body.{block}.rdb1", x)))
        x = x + 0.2 * y
    x = first + conv("conv_body", x)
    for step in range(1, net.doublings + 1):
        x = rectified(conv(f"conv_up{step}", x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv("conv_last", rectified(conv("conv_hr", x)))


@pytest.mark.parametrize("case", NETS)
def test_a_net_computes_what_its_paper_says(tmp_path: Path, case: str) -> None:
    net = made(tmp_path, case)
    given = torch.rand((1, 3, 24, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, result = written_out(net, given), net(given)
    assert result.shape == (1, 3, 24 * net.scale, 16 * net.scale)
    assert float(expected.std()) > 0.01
    assert float((result - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("layout", ["esrgan", "numbered"])
@pytest.mark.parametrize("case", ["×4", "×2, folded", "×1", "×8", "two blocks"])
def test_every_layout_gives_the_same_pixels(tmp_path: Path, layout: str, case: str) -> None:
    small = image(20, 12)
    first, other = made(tmp_path, case), made(tmp_path, case, layout=layout, prefix="params.")
    assert enlarged(first, small) == enlarged(other, small)


# --- images


@pytest.mark.parametrize("case", ["×4", "compact"])
def test_a_whole_image_is_the_net_in_one_piece(tmp_path: Path, case: str) -> None:
    net, small = made(tmp_path, case), image(30, 20)
    given = torch.from_numpy(pixels(small).astype(numpy.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = (net(given)[0].clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)
    large = enlarged(net, small)
    assert (large.width, large.height) == (120, 80)
    assert large.pixels == expected.numpy().tobytes()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (21, 7), (3, 1)])
@pytest.mark.parametrize("case", ["×4", "×2, folded", "×1, folded", "compact"])
def test_any_size_is_enlarged(tmp_path: Path, case: str, size: tuple[int, int]) -> None:
    net = made(tmp_path, case)
    large = enlarged(net, image(*size))
    assert (large.width, large.height) == (size[0] * net.scale, size[1] * net.scale)
    assert len(large.pixels) == 3 * large.width * large.height


def test_a_net_goes_over_an_image_several_times(tmp_path: Path) -> None:
    net, small = made(tmp_path, "×2"), image(12, 8)
    once = enlarged(net, small)
    assert enlarged(net, small, times=2) == enlarged(net, once) != once


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("case", ["×4", "compact"])
def test_number_types_agree(tmp_path: Path, case: str, dtype: str) -> None:
    path = make_checkpoint.write_upscaler(tmp_path / "x.safetensors", tiny=True, **NETS[case])
    exact, other = (pixels(enlarged(net_of(path, one), image(24, 24))) for one in ("fp32", dtype))
    assert numpy.abs(exact - other).max() <= (0 if dtype == "fp32" else 6)


def test_what_is_not_finite_in_half_precision_is_computed_again(tmp_path: Path) -> None:
    net = made(tmp_path, "×2").to(torch.float16)
    with torch.no_grad():
        net.conv_first.bias.fill_(60_000.0)  # its convolutions overflow
        net.conv_last.weight.mul_(1e-6)
    exact = enlarged(net, image(8, 8))
    assert net.dtype == torch.float16
    assert exact == enlarged(net.to(torch.float32), image(8, 8))


def test_what_is_not_finite_at_all_is_no_image(tmp_path: Path) -> None:
    net = made(tmp_path, "×2")
    with torch.no_grad():
        net.conv_last.bias.fill_(float("nan"))
    with pytest.raises(ImagesFailed, match="not finite, even in fp32"):
        enlarged(net, image(8, 8))


# --- tiles


def reach(net: Upscaler) -> int:
    """Pixels of the image, to each side, that one of the result depends on."""
    if not hasattr(net, "conv_first"):
        return len(net.body) // 2 + 1
    of_small = 2 + 15 * len(net.body)  # the first convolution, the last of the body, and fifteen in each of the blocks
    return net.folded * of_small + 2


@pytest.mark.parametrize("case", ["×4", "×2", "compact", "compact, ×2"])
@pytest.mark.parametrize("size", [(560, 24), (24, 613)])
def test_tiles_that_overlap_by_all_that_a_net_sees_are_the_whole(
    tmp_path: Path, case: str, size: tuple[int, int]
) -> None:
    """To the pixel: what a tile lacks is beyond what any pixel that is kept of it depends on."""
    net = made(tmp_path, case)
    assert reach(net) <= overlap(512) == 32
    small = image(*size)
    assert len(spans(max(size), 512)) > 1
    assert enlarged(net, small, tile=512) == enlarged(net, small)


def test_tiles_of_a_net_that_folds_pixels_begin_where_it_folds(tmp_path: Path) -> None:
    net = net_of(make_checkpoint.write_upscaler(tmp_path / "x.safetensors", tiny=True, **FOLDED))
    small = image(301, 47)  # neither side can be folded
    whole, tiled = pixels(enlarged(net, small)), pixels(enlarged(net, small, tile=256))
    assert whole.shape == (94, 602, 3)
    assert numpy.abs(whole - tiled).max() <= 1


@pytest.mark.parametrize(("tile", "most"), [(512, 1), (128, 1), (64, 2)])
def test_a_deep_net_shows_no_seam_where_tiles_meet(tmp_path: Path, tile: int, most: int) -> None:
    """It sees further than tiles overlap, but hardly: what is far away counts for little."""
    path = make_checkpoint.write_upscaler(tmp_path / "x.safetensors", features=16, growth=8, blocks=12)
    net, small = net_of(path), image(tile + 40, 48)
    assert reach(net) > 5 * overlap(tile)
    whole, tiled = pixels(enlarged(net, small)), pixels(enlarged(net, small, tile=tile))
    assert len(spans(small.width, tile)) > 1
    assert numpy.abs(whole - tiled).max() <= most
