"""The screen of `plan` and generate's first lines: complete at any width, and clear about where figures come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import asking, gpu, jobs_of, known_model, mac, processor

from sdcli.cli.plan_screen import render, render_summary, sensible, setup_name
from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Plan, Setup
from sdcli.plan.planner import make_plan
from sdcli.plan.remembered import key_of
from sdcli.terminal import cells

GIB = 1 << 30


def planned(family: str, hardware: Hardware, remembered: dict[str, Any] | None = None, **asked: Any) -> Plan:
    request = asking(family, **asked)
    return make_plan(request, known_model(family), hardware, remembered or {}, jobs=jobs_of(request))


def text(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


EIGHT = gpu(8, free=7.1, ram=24.1)


def test_the_screen_of_an_8_gib_gpu_is_as_expected() -> None:
    plan = planned("sdxl", EIGHT)
    named = replace(
        plan.model, repository="stabilityai/stable-diffusion-xl-base-1.0", licence="OpenRAIL++-M",
        download_bytes=6_940_000_000,
    )  # fmt: skip
    lines = render(replace(plan, model=named), 80, disk_free=212 * 10**9)
    assert lines[:7] == [
        "sdxl: stabilityai/stable-diffusion-xl-base-1.0, licence OpenRAIL++-M",
        "  1 image 1024×1024, 30 steps DPM++ 2M Karras · 6.94 GB to download, 212 GB free",
        "RTX 4060: 7.1 of 8.0 GiB free now, budget 6.3 · host RAM: 24.1 of 24.1 GiB free",
        "",
        "  setup                                   GPU GiB  RAM GiB    time",
        "  all on the GPU                              8.5      1.6   ×1.00  2.2 too much",
        "  encoders dropped after use                  6.9      1.6   ×1.01  0.6 too much",
    ]
    assert "▸ encoders dropped, VAE in tiles of 512       5.5      1.6   ×1.03  fastest fit" in lines
    whole = text(lines)
    assert "on the CPU, fp32 –" in whole
    assert "Why keeping everything loaded needs" in whole
    assert "the VAE's decode, not the UNet, sets the peak: tiles of 512 save 1.4 GiB" in whole
    assert "fp16: this GPU's full rate, half the memory of fp32; fused attention: slicing" in whole
    assert "--pin placement=" in whole and "--as-if cuda:6GiB" in whole


def test_figures_are_called_predicted_until_measured() -> None:
    here = replace(EIGHT, source="nvml")
    plan = planned("sdxl", here)
    assert "Predicted, not measured on this machine" in text(render(plan)) and "±" not in text(render(plan))
    assert "about" not in text(render_summary(plan))
    memory = {"device_peak": 5 * GIB, "host_peak": GIB, "load": 4.0, "step": 0.8, "picture": 1.0, "runs": 3}
    again = planned("sdxl", here, {key_of(plan.model, plan.setup, plan.batch(0)): memory})
    assert "Measured in 3 runs on this machine" in text(render(again))
    assert " 29 s  fastest fit" in "\n".join(render(again))
    assert render_summary(again)[-1].endswith("about 29 s")
    assert "Predicted for another machine, not measured" in text(render(planned("sdxl", EIGHT)))
    assert "(±10 % on the CPUs tested)" in text(render(planned("sd15", processor(32))))


def test_a_pinned_choice_is_called_so_once() -> None:
    plan = planned("sd15", processor(32), pins={"vae": "tile-256", "attention": "sliced", "dtype": "fp32"})
    whole = text(render(plan))
    said = [row.because for row in plan.decisions if row.source == "pin"]
    assert any("pinned" in because for because in said) and "(pinned)" in whole
    assert not any(f"{because} (pinned)" in whole for because in said if "pinned" in because)


def test_the_summary_is_one_line_where_everything_fits() -> None:
    plan = planned("sd15", gpu(8, free=7.1))
    assert render_summary(plan) == ["plan: RTX 4060, fp16, all on the GPU, needs 2.5 of 7.1 GiB free"]
    assert render_summary(planned("sd15", processor(9.8))) == ["sd15 · cpu bf16 · needs 2.9 of 9.8 GiB free"]


def test_the_summary_says_why_where_the_fastest_setup_does_not_fit() -> None:
    lines = render_summary(planned("sdxl", gpu(4)))
    assert lines[0] == "plan: RTX 4060, fp16, streamed layer by layer, needs 2.1 of 4.0 GiB free"
    assert lines[1].strip().startswith("one part at a time needs") and lines[1].endswith("more than the budget")


def test_the_built_in_model_introduces_itself() -> None:
    plan = planned("sd15", processor(9.8))
    own = replace(plan.model, name="builtin", kind="builtin", source="builtin")
    plan = replace(plan, model=own)
    assert render_summary(plan)[0].startswith("builtin, a small emoji model · cpu bf16 · needs ")
    assert "comes with sdcli" in text(render(plan))


def test_vendor_names_are_left_out_of_a_gpus_name() -> None:
    plan = planned("sd15", gpu(8, name="NVIDIA GeForce RTX 2060"))
    assert render_summary(plan)[0].startswith("plan: RTX 2060, ")


def test_the_table_is_short_and_has_the_chosen_setup() -> None:
    for plan in (planned("sdxl", EIGHT), planned("sdxl", gpu(4)), planned("sd15", mac(16))):
        rows = sensible(plan)
        assert len(rows) <= 9
        assert sum(row.chosen for row in rows) == 1
        assert sum(row.setup.storage == "fp8" for row in rows) <= 2


def test_lossy_rows_say_so_and_pinned_ones_say_pinned() -> None:
    assert "lossy" in text(render(planned("sdxl", EIGHT)))
    pinned = text(render(planned("sdxl", EIGHT, pins={"storage": "fp8"})))
    assert "as pinned" in pinned and "(pinned)" in pinned
    assert "omit --pin" in pinned


def test_nothing_is_marked_as_chosen_where_nothing_fits() -> None:
    lines = render(planned("sdxl", gpu(2, ram=3)))
    assert not any(line.startswith("▸") for line in lines)
    assert "too much" in text(lines)


def test_a_name_gets_shorter_before_it_is_cut() -> None:
    setup = Setup(dtype="fp16", storage="fp8", placement="drop-encoders", vae="tile-512", device="cuda:0")
    full = setup_name(setup, setup, 60)
    assert full == "fp8 weights, encoders dropped, VAE in tiles of 512"
    assert setup_name(setup, setup, 40) == "fp8, encoders dropped, VAE tiles 512"
    assert setup_name(setup, setup, 33) == "fp8, encoders dropped, tiles 512"
    assert cells(setup_name(setup, setup, 12)) <= 12
    assert setup_name(replace(setup, device="cpu", dtype="fp32"), setup) == "on the CPU, fp32"


def test_foreign_names_have_no_power_over_the_terminal() -> None:
    plan = planned("sdxl", gpu(8, name="\x1b[31mGPU"))
    plan = replace(plan, model=replace(plan.model, name="[/red]\x1b[2J", licence="\x07bell", repository="a\u202eb"))
    for line in (*render(plan), *render_summary(plan)):
        assert "\x1b" not in line and "\x07" not in line and "\u202e" not in line


machines = st.sampled_from(
    [
        EIGHT,
        gpu(4),
        gpu(6, capability="7.5"),
        gpu(2, ram=3),
        gpu(80),
        processor(4),
        processor(40, isa="avx2"),
        mac(16),
    ]
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(["sd15", "sdxl"]),
    hardware=machines,
    width=st.integers(20, 160),
    ascii=st.booleans(),
    count=st.integers(1, 3),
)
def test_every_line_fits_the_width_it_was_given(
    family: str, hardware: Hardware, width: int, ascii: bool, count: int
) -> None:
    plan = planned(family, hardware, count=count)
    for line in (*render(plan, width, ascii, 10**11), *render_summary(plan, width, ascii)):
        assert cells(line) <= width
        assert line == line.rstrip()
        if ascii:
            assert line.isascii()


@pytest.mark.parametrize("width", [64, 80, 100, 120])
@pytest.mark.parametrize("hardware", [EIGHT, gpu(4), processor(16), mac(16)], ids=lambda value: value.device)
def test_nothing_is_cut_off_from_64_columns_on(hardware: Hardware, width: int) -> None:
    plan = planned("sdxl", hardware)
    lines = [*render(plan, width), *render_summary(plan, width)]
    assert not [line for line in lines if line.endswith("…")]
