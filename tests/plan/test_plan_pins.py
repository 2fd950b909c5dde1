"""Pins as the user types them: names, reasons, and hints that work when pasted."""

from __future__ import annotations

import pytest
from making import asking, gpu, jobs_of, known_model, mac, processor

from sdcli.errors import Usage
from sdcli.machine.hardware import Hardware
from sdcli.plan.pins import read_pins
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.techniques import TECHNIQUES


def planned(family: str, hardware: Hardware, **pins: str) -> Plan:
    request = asking(family, pins=pins)
    return make_plan(request, known_model(family), hardware, {}, jobs=jobs_of(request))


def refusal(family: str, hardware: Hardware, **pins: str) -> Usage:
    with pytest.raises(Usage) as caught:
        planned(family, hardware, **pins)
    assert caught.value.code == 2
    return caught.value


def pasted(error: Usage) -> dict[str, str]:
    flag, pin = error.hint.split(" ")
    assert flag == "--pin"
    return dict([pin.split("=")])


def test_a_slot_is_written_with_a_dash_or_an_underscore() -> None:
    assert read_pins({"vae-dtype": "fp32"}) == read_pins({"vae_dtype": "fp32"}) == {"vae_dtype": "fp32"}


def test_an_unknown_slot_names_the_slots_and_the_nearest() -> None:
    error = refusal("sd15", gpu(8), placment="resident")
    assert 'no slot "placment"' in error.message
    assert "dtype, storage, placement, attention, guidance, vae, vae-dtype, execution" in error.message
    assert read_pins(pasted(error))["placement"]


def test_an_unknown_choice_names_the_choices_and_the_nearest() -> None:
    error = refusal("sd15", gpu(8), placement="stream")
    assert "resident, drop-encoders, model-offload, group-offload, disk" in error.message
    assert read_pins(pasted(error))
    assert pasted(refusal("sd15", gpu(8), vae="tile512")) == {"vae": "tile-512"}


def test_foreign_characters_in_a_pin_are_escaped() -> None:
    assert "\x1b" not in refusal("sd15", gpu(8), placement="\x1b[31mred").message


@pytest.mark.parametrize(
    ("family", "hardware", "pins", "reason", "instead"),
    [
        ("sd15", processor(16), {"dtype": "fp16"}, "on a CPU", "bf16"),
        ("sd15", processor(16), {"placement": "group-offload"}, "nowhere to offload", "disk"),
        ("sd15", processor(16), {"storage": "fp8"}, "NVIDIA", "same"),
        ("sd15", gpu(8), {"attention": "blocked"}, "for CPUs in bf16", "fused"),
        ("sd15", gpu(8), {"execution": "packed"}, "are for CPUs", "eager"),
        ("sd15", processor(8), {"execution": "graph"}, "are for NVIDIA GPUs", "eager"),
        ("sd15", gpu(8), {"execution": "graph", "placement": "group-offload"}, "have to stay there", "resident"),
        ("sd15", processor(8), {"execution": "packed", "attention": "sliced"}, "or in blocks, not sliced", "fused"),
        ("sd15", gpu(8, capability="7.5"), {"dtype": "bf16"}, "compute capability 8.0, this GPU has 7.5", "fp16"),
        ("sdxl", gpu(8), {"dtype": "fp16", "vae-dtype": "same"}, "overflows in fp16", "fp32"),
        ("sd15", mac(16), {"placement": "model-offload"}, "share their memory", "disk"),
        ("sd15", processor(16, isa="avx2"), {"vae": "cpu"}, "on the CPU already", "whole"),
    ],
)
def test_an_illegal_pin_says_why_and_names_legal_choices(
    family: str, hardware: Hardware, pins: dict[str, str], reason: str, instead: str
) -> None:
    error = refusal(family, hardware, **pins)
    assert "is not possible here" in error.message
    assert reason in error.message
    assert instead in error.details["choices"]
    planned(family, hardware, **pasted(error))


def test_two_pins_that_exclude_each_other_are_refused_together() -> None:
    error = refusal("sd15", gpu(8), dtype="fp32", storage="fp8")
    assert "fp32" in error.message


def test_a_pin_brings_along_what_it_needs() -> None:
    plan = planned("sd15", gpu(8), vae="cpu")
    assert (plan.setup.dtype, plan.setup.vae, plan.setup.vae_dtype) == ("fp16", "cpu", "fp32")
    assert planned("sd15", processor(16), attention="fused").setup.dtype == "bf16"


def test_a_pin_that_does_not_fit_is_a_plan_that_says_so() -> None:
    plan = planned("sdxl", gpu(6), placement="resident", vae="whole")
    assert not plan.fits
    assert (plan.setup.placement, plan.setup.vae) == ("resident", "whole")


def test_a_pin_slower_than_what_fits_shows_its_slowdown() -> None:
    free, pinned = planned("sdxl", gpu(24)), planned("sdxl", gpu(24), placement="group-offload")
    assert free.slowdown == 1.0 < pinned.slowdown


def test_no_execution_is_offered_that_draw_does_not_have() -> None:
    assert "it can be eager" in refusal("sd15", gpu(8), execution="int8").message


@pytest.mark.parametrize("hardware", [gpu(3), gpu(8, free=7.1), processor(16)], ids=lambda value: value.device)
def test_pinning_every_slot_of_a_plan_gives_that_plan_again(hardware: Hardware) -> None:
    plan = planned("sdxl", hardware)
    again = planned("sdxl", hardware, **{technique.slot: technique.of(plan.setup) for technique in TECHNIQUES})
    assert again.setup == plan.setup
    assert again.footprint == plan.footprint
