"""Predicted bytes against counted ones: weights and live activations, in fp16, on a GPU; one memory on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import gpu, known_model, mac, processor

from sdcli.machine.hardware import Hardware
from sdcli.plan import calibration
from sdcli.plan.footprint import Sizes, footprint
from sdcli.plan.pins import candidates
from sdcli.plan.plan import Footprint, Setup
from sdcli.plan.stages import Shape, stages_at

MIB = 1 << 20
SIZE = {"sd15": 512, "sdxl": 1024}


def of(family: str, hardware: Hardware | None = None, *, size: int = 0, batch: int = 1, **slots: str) -> Footprint:
    side = size or SIZE[family]
    shape = Shape(width=side, height=side, batch=batch)
    return footprint(known_model(family), shape, Setup(**slots), hardware or gpu(80))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "slots", "counted"),
    [
        ("sd15", {"dtype": "fp16"}, 2418),
        ("sdxl", {"dtype": "bf16"}, 8153),
        ("sdxl", {"dtype": "fp16", "vae_dtype": "fp32"}, 9850),
        ("sdxl", {"dtype": "bf16", "vae": "tile-512"}, 7006),
        ("sdxl", {"dtype": "bf16", "placement": "model-offload"}, 5213),
        ("sdxl", {"dtype": "bf16", "placement": "model-offload", "storage": "fp8", "vae": "tile-512"}, 2765 + 56),
    ],
)
def test_a_gpu_needs_the_counted_bytes_with_the_blocks_and_gaps_of_its_allocator(
    family: str, slots: dict[str, str], counted: int
) -> None:
    peak = of(family, **slots).device_peak / MIB
    assert counted < peak < counted * 1.09


def test_the_goals_for_a_gpu_are_within_reach_of_the_forecast() -> None:
    gib = 1 << 30
    assert of("sdxl", dtype="bf16").device_peak < 8.9 * gib
    assert of("sdxl", dtype="bf16", placement="model-offload").device_peak < 5.4 * gib
    assert of("sdxl", dtype="bf16", placement="model-offload", storage="fp8", vae="tile-512").device_peak < 3.3 * gib
    assert of("sdxl", dtype="bf16", placement="group-offload", vae="tile-512").device_peak < 1.6 * gib
    assert of("sd15", dtype="fp16").device_peak < 2.6 * gib
    assert of("sd15", dtype="fp16", placement="group-offload").device_peak < 0.9 * gib


def test_streaming_holds_a_window_of_layers_not_the_unet() -> None:
    """The few that are beside the most activations: the largest layers run where there are fewer of those."""
    streamed = of("sdxl", dtype="bf16", placement="group-offload", vae="tile-512")
    denoise = next(phase for phase in streamed.phases if phase.name == "denoise")
    assert 5 * MIB < denoise.weights < 50 * MIB
    encode = next(phase for phase in streamed.phases if phase.name == "encode")
    assert encode.weights + encode.work > 49408 * 1280 * 2  # a table of words is one layer
    assert denoise.pinned > 6000 * MIB  # every streamed weight waits page-locked on the host


def test_the_decode_sets_the_peak_until_it_is_tiled() -> None:
    whole = of("sdxl", dtype="bf16", placement="drop-encoders")
    tiled = of("sdxl", dtype="bf16", placement="drop-encoders", vae="tile-512")
    assert max(whole.phases, key=lambda phase: phase.device).name == "decode"
    assert whole.device_peak - tiled.device_peak > 1000 * MIB


def test_dropped_encoders_are_gone_when_the_unet_loads() -> None:
    phases = {phase.name: phase for phase in of("sdxl", dtype="bf16", placement="drop-encoders").phases}
    blocks = calibration.CUDA_BLOCKS
    assert phases["encode"].weights == pytest.approx((123_060_480 + 694_659_840) * 2 * blocks)
    there = phases["denoise"].weights + phases["denoise"].parked
    assert there == pytest.approx((2_567_463_684 + 83_653_863) * 2 * blocks)


def test_offloaded_weights_wait_on_the_host_and_resident_ones_do_not() -> None:
    resident, offloaded = of("sdxl", dtype="bf16"), of("sdxl", dtype="bf16", placement="model-offload")
    disk = of("sdxl", dtype="bf16", placement="disk")
    assert offloaded.host_peak - resident.host_peak == pytest.approx(6617 * MIB, rel=0.01)
    assert disk.host_peak == resident.host_peak and disk.device_peak == offloaded.device_peak


def test_a_cpu_has_one_memory_and_counts_it_once() -> None:
    for slots in ({"dtype": "bf16"}, {"dtype": "fp32"}, {"dtype": "bf16", "placement": "disk"}):
        peaks = of("sd15", processor(16), **slots)
        assert peaks.device_peak == peaks.host_peak
        assert all(phase.device == phase.host for phase in peaks.phases)
    resident = of("sd15", processor(16), dtype="bf16")
    assert resident.host_peak / MIB == pytest.approx(460 + 2034 + 384 + 56, rel=0.01)


def test_a_cpu_reading_parts_from_disk_holds_the_largest_part_only() -> None:
    peaks = of("sd15", processor(16), dtype="fp32", placement="disk")
    assert peaks.host_peak / MIB == pytest.approx(460 + 3279 + 260 * 1.8 + 56, rel=0.01)


def test_a_mac_holds_the_weights_once_for_both_sides() -> None:
    peaks = of("sdxl", mac(32), dtype="bf16")
    assert 0 < peaks.host_peak - peaks.device_peak < calibration.IMPORTS + 600 * MIB


def test_a_vae_on_the_cpu_leaves_the_gpu() -> None:
    on_gpu = of("sdxl", dtype="fp16", vae_dtype="fp32")
    moved = of("sdxl", dtype="fp16", vae_dtype="fp32", vae="cpu")
    decode = next(phase for phase in moved.phases if phase.name == "decode")
    assert decode.work == 0 and decode.weights == 0
    assert moved.device_peak < on_gpu.device_peak and moved.host_peak > on_gpu.host_peak + 3000 * MIB


def test_guidance_in_turn_halves_the_unets_work() -> None:
    both = {p.name: p for p in of("sdxl", dtype="bf16").phases}["denoise"].work
    one = {p.name: p for p in of("sdxl", dtype="bf16", guidance="in-turn").phases}["denoise"].work
    assert one - calibration.CUDA_WORKSPACE == pytest.approx((both - calibration.CUDA_WORKSPACE) / 2, rel=0.01)


def test_sliced_attention_is_larger_than_fused() -> None:
    def work(**slots: str) -> int:
        return {p.name: p for p in of("sd15", dtype="fp16", **slots).phases}["denoise"].work

    assert work(attention="sliced") > work()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(["sd15", "sdxl"]),
    side=st.integers(4, 24).map(lambda n: n * 64),
    batch=st.integers(1, 4),
    placement=st.sampled_from(["resident", "drop-encoders", "model-offload", "group-offload", "disk"]),
    vae=st.sampled_from(["whole", "tile-512", "tile-256"]),
)
def test_more_pixels_and_more_images_never_need_less(
    family: str, side: int, batch: int, placement: str, vae: str
) -> None:
    slots = {"dtype": "bf16", "placement": placement, "vae": vae}
    base = of(family, size=side, batch=batch, **slots)
    assert of(family, size=side + 64, batch=batch, **slots).device_peak >= base.device_peak
    assert of(family, size=side, batch=batch + 1, **slots).device_peak >= base.device_peak
    assert base.device_peak == max(phase.device for phase in base.phases)
    assert base.host_peak == max(phase.host for phase in base.phases)
    for phase in base.phases:
        assert phase.device == phase.weights + phase.parked + phase.work


def test_the_dtype_of_the_file_does_not_change_what_is_in_memory() -> None:
    shape, setup = Shape(width=512, height=512), Setup(dtype="bf16")
    half = footprint(known_model("sd15"), shape, setup, gpu(8))
    full = footprint(known_model("sd15", stored="fp32"), shape, setup, gpu(8))
    assert half.device_peak == full.device_peak
    assert replace(half.phases[1]) == full.phases[1]


@pytest.mark.parametrize("hardware", [gpu(8), processor(64), mac(16)], ids=lambda hardware: hardware.kind)
def test_what_is_counted_once_for_many_setups_is_what_each_needs_alone(hardware: Hardware) -> None:
    model, shape = known_model("sdxl"), Shape(width=1024, height=1024)
    start = Setup(threads=hardware.threads, device=hardware.device)
    pinned = ({}, {"attention": "sliced"})
    setups = [setup for pins in pinned for setup in candidates(start, hardware, model, pins)]
    together = Sizes(model, stages_at(model, shape), hardware)
    assert len(setups) > 30
    assert [together.footprint(setup) for setup in setups] == [
        footprint(model, shape, setup, hardware) for setup in setups
    ]
