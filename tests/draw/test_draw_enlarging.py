"""The engine of `sdcli upscale`: on a CPU and a pretend GPU the same pixels, in the memory that was planned, and in
smaller tiles where it runs out."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from draw_samples import HARDWARE
from PIL import Image

from scripts import make_checkpoint
from sdcli.asking import upscalers
from sdcli.draw import local
from sdcli.errors import BadFile, OutOfMemory
from sdcli.events import Degraded, Enlarged, Failed, Loaded, Memory, Tile
from sdcli.images.read import InputImage, look
from sdcli.machine import survey
from sdcli.machine.hardware import Hardware
from sdcli.models import upscaler
from sdcli.models.model import Model
from sdcli.plan import calibration
from sdcli.plan.upscaling import UpscalePlan, make_upscale_plan
from sdcli.request.upscaling import Target, make_enlargements
from sdcli.sizes import GIB
from tests.pretend_gpu import allocator, device, pretend


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint.write_upscaler(tmp_path_factory.mktemp("net") / "x4.safetensors", blocks=1)


def image(folder: Path, width: int, height: int) -> InputImage:
    values = numpy.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    path = folder / f"{width}x{height}.png"
    Image.fromarray(values).save(path)
    return look(path)


def plan_for(net: Path, images: list[InputImage], hardware: Hardware = HARDWARE, **asked: Any) -> UpscalePlan:
    """As the command line makes it."""
    found = upscaler.read(net)
    model = Model(
        name=found.name, kind="upscaler", family="", source="file", components={upscaler.PART: found.component}
    )
    jobs = make_enlargements(images, asked.pop("target", Target()), found.scale)
    asked = {"pinned": "fp32"} | asked
    plan = make_upscale_plan(jobs, model, hardware, upscalers.adapter(found), **asked)
    return replace(plan, setup=replace(plan.setup, threads=1))


def made(plan: UpscalePlan) -> list[tuple[int, int, bytes]]:
    events = local.enlarge(plan)
    return [(event.width, event.height, event.pixels) for event in events if isinstance(event, Enlarged)]


def test_images_come_one_after_another_and_the_net_is_read_once(tmp_path: Path, net: Path) -> None:
    images = [image(tmp_path, 30, 20), image(tmp_path, 16, 16)]
    events = list(local.enlarge(plan_for(net, images)))
    assert len([event for event in events if isinstance(event, Loaded)]) == 1
    kinds = [type(event).__name__ for event in events if isinstance(event, (Tile, Enlarged))]
    assert kinds == ["Tile", "Enlarged"] * 2
    done = [(event.index, event.width, event.height) for event in events if isinstance(event, Enlarged)]
    assert done == [(0, 120, 80), (1, 64, 64)]


def test_an_image_that_changed_meanwhile_fails_alone(tmp_path: Path, net: Path) -> None:
    images = [image(tmp_path, 30, 20), image(tmp_path, 16, 16)]
    Image.new("RGB", (30, 20)).save(images[0].path)
    events = list(local.enlarge(plan_for(net, images)))
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.index == 0 and failed.error["code"] == BadFile.code
    assert [event.index for event in events if isinstance(event, Enlarged)] == [1]


def test_the_tile_is_the_largest_that_fits_and_nothing_fits_nowhere(tmp_path: Path, net: Path) -> None:
    images, tiles = [image(tmp_path, 1100, 700)], []
    for gib in (32, 8, 3, 1.2, 0.7, 0.3):
        hardware = replace(HARDWARE, ram_free=int(gib * GIB), free=int(gib * GIB))
        plan = plan_for(net, images, hardware)
        assert plan.fits == (plan.footprint.host_peak <= plan.budget.host)
        tiles.append(plan.setup.upscaler_tile if plan.fits else None)
    assert tiles[0] == 0 and tiles[-1] is None
    chosen = [tile or 4096 for tile in tiles if tile is not None]
    assert len(set(chosen)) >= 4 and chosen == sorted(chosen, reverse=True)


@pytest.mark.parametrize("tile", [0, 64])
def test_a_gpu_gives_the_pixels_of_the_cpu_in_the_memory_that_was_planned(tmp_path: Path, net: Path, tile: int) -> None:
    images = [image(tmp_path, 150, 70)]
    with pretend(device("8GiB", capability="8.6")) as gpu:
        hardware = survey.choose("cuda", survey.look())
        plan = plan_for(net, images, hardware, tile=tile or None)
        events = list(local.enlarge(plan))
        gc.collect()
        assert gpu.held() == 0
        least = allocator.least(gpu.allocator().log)
    pixels = [(event.width, event.height, event.pixels) for event in events if isinstance(event, Enlarged)]
    assert pixels == made(plan_for(net, images, tile=tile or None))
    (peak,) = [event.allocated_peak for event in events if isinstance(event, Memory) and event.phase == "upscale"]
    phase = next(row for row in plan.footprint.phases if row.name == "upscale")
    blocks, gaps = calibration.CUDA_BLOCKS, calibration.CUDA_GAPS
    tensors = phase.weights + (phase.work - calibration.CUDA_WORKSPACE) * blocks / (blocks + gaps)
    assert peak is not None and abs(tensors / peak - 1) < 0.05
    assert least <= plan.footprint.device_peak / calibration.CUDA_SAFETY


def test_where_memory_runs_out_tiles_are_halved(tmp_path: Path, net: Path) -> None:
    images = [image(tmp_path, 150, 40)]
    with pretend(device("8GiB")) as gpu:
        plan = plan_for(net, images, survey.choose("cuda", survey.look()))
        list(local.enlarge(plan))
        last = gpu.allocator().requests
    assert plan.setup.upscaler_tile == 0 and plan.fallbacks == (128, 64)
    with pretend(device("8GiB")) as gpu:
        gpu.fail_at(last - 3)
        events = list(local.enlarge(plan))
        gc.collect()
        assert gpu.held() == 0
    (drop,) = [event for event in events if isinstance(event, Degraded)]
    assert (drop.before, drop.after, drop.changes_pixels) == ({"tile": "whole"}, {"tile": "128"}, True)
    (done,) = [event for event in events if isinstance(event, Enlarged)]
    assert done.tile == 128
    assert done.pixels == made(plan_for(net, images, tile=128))[0][2]


def test_where_nothing_smaller_is_left_it_ends(tmp_path: Path, net: Path) -> None:
    images = [image(tmp_path, 90, 40)]
    asked: dict[str, Any]
    for asked, why in (({"tile": 64}, "nothing smaller is left to try"), ({"fallback": False}, "--no-fallback is set")):
        with pretend(device("8GiB")) as gpu:
            plan = plan_for(net, images, survey.choose("cuda", survey.look()), **asked)
            gpu.fail_at(40)
            with pytest.raises(OutOfMemory, match=r"out of memory enlarging 90x40\.png") as ended:
                list(local.enlarge(plan))
            assert why in ended.value.message
            del ended
            gc.collect()
            assert gpu.held() == 0
