"""What is chosen on typical machines, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from making import asking, gpu, jobs_of, known_model, mac, processor

from sdcli import schema
from sdcli.errors import Usage
from sdcli.machine.hardware import Hardware, QueryBlock, Trial
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.refusal import refused

GIB = 1 << 30


def planned(family: str, hardware: Hardware, *, vae_config: dict[str, Any] | None = None, **asked: Any) -> Plan:
    request = asking(family, **asked)
    return make_plan(request, known_model(family, vae_config=vae_config), hardware, {}, jobs=jobs_of(request))


def why(plan: Plan, slot: str) -> str:
    return next(decision.because for decision in plan.decisions if decision.slot == slot)


TABLE = [
    # GiB, capability, family, placement, vae, vae_dtype, peak GiB
    (4, "8.6", "sd15", "resident", "whole", "same", 2.5),
    (6, "8.6", "sd15", "resident", "whole", "same", 2.5),
    (24, "8.9", "sd15", "resident", "whole", "same", 2.5),
    (4, "8.6", "sdxl", "group-offload", "whole", "bf16", 2.0),
    (6, "8.6", "sdxl", "drop-encoders", "tile-256", "bf16", 5.2),
    (8, "8.9", "sdxl", "drop-encoders", "whole", "bf16", 6.9),
    (12, "8.6", "sdxl", "resident", "whole", "bf16", 8.5),
    (12, "7.5", "sdxl", "resident", "whole", "fp32", 10.5),
    (24, "8.9", "sdxl", "resident", "whole", "bf16", 8.5),
    (80, "9.0", "sdxl", "resident", "whole", "bf16", 8.5),
]


@pytest.mark.parametrize(("gib", "capability", "family", "placement", "vae", "vae_dtype", "peak"), TABLE)
def test_typical_gpus_get_the_fastest_setup_that_fits(
    gib: int, capability: str, family: str, placement: str, vae: str, vae_dtype: str, peak: float
) -> None:
    plan = planned(family, gpu(gib, capability=capability))
    setup = plan.setup
    assert plan.fits
    assert (setup.dtype, setup.storage, setup.execution) == ("fp16", "same", "eager")
    assert (setup.placement, setup.vae, setup.vae_dtype) == (placement, vae, vae_dtype)
    assert plan.footprint.device_peak / GIB == pytest.approx(peak, abs=0.06)


def test_an_8_gib_gpu_with_a_desktop_on_it_tiles_sdxl_and_says_why() -> None:
    plan = planned("sdxl", gpu(8, free=7.1, ram=24))
    assert (plan.setup.placement, plan.setup.vae) == ("drop-encoders", "tile-512")
    assert "more than the budget" in why(plan, "placement")
    assert "the VAE's decode, not the UNet, sets the peak: tiles of 512 save 1.4 GiB" in why(plan, "vae")
    tiles = next(decision for decision in plan.decisions if decision.slot == "vae")
    assert tiles.device_peak_without is not None and tiles.device_peak_without - tiles.device_peak > GIB


def test_a_6_gib_gpu_draws_sdxl_with_all_of_its_unet_there_and_says_why() -> None:
    plan = planned("sdxl", gpu(6))
    assert (plan.setup.placement, plan.setup.guidance) == ("drop-encoders", "in-turn")
    assert "halves the UNet's work" in why(plan, "guidance")


def test_a_gpu_with_a_little_less_offloads_sdxl_and_says_why() -> None:
    plan = planned("sdxl", gpu(6, free=5.85))
    assert plan.setup.placement == "model-offload"
    assert "waits in host memory" in why(plan, "placement")


def test_a_2_gib_gpu_streams_sdxl_at_full_size() -> None:
    plan = planned("sdxl", gpu(2))
    assert plan.fits
    assert plan.setup.placement == "group-offload"
    assert plan.setup.vae.startswith("tile")


def test_without_host_memory_to_park_in_the_parts_come_from_disk() -> None:
    plan = planned("sdxl", gpu(6, free=5.85, ram=4))
    assert plan.setup.placement == "disk"
    assert "host memory" in why(plan, "placement")


def test_a_gpu_without_bf16_decodes_sdxl_in_fp32_and_says_why() -> None:
    plan = planned("sdxl", gpu(16, capability="7.5"))
    assert plan.setup.vae_dtype == "fp32"
    assert "overflows in fp16" in why(plan, "vae_dtype")


def test_a_repaired_sdxl_vae_stays_in_fp16() -> None:
    plan = planned("sdxl", gpu(16, capability="7.5"), vae_config={"force_upcast": False})
    assert plan.setup.vae_dtype == "same"


def test_sd15s_vae_stays_in_fp16_whatever_its_config_says() -> None:
    assert planned("sd15", gpu(8, capability="7.5")).setup.vae_dtype == "same"


def test_a_cpu_with_bf16_units_uses_them() -> None:
    plan = planned("sd15", processor(16))
    assert (plan.setup.dtype, plan.setup.placement) == ("bf16", "resident")
    assert "avx512_bf16" in why(plan, "dtype")


TRIED = Trial(
    dtype="bf16", attention={"fused": 2.0, "blocked": 1.2}, execution={"eager": 3.0, "packed": 2.1},
    blocks=(QueryBlock(keys=4096, queries=128),),
)  # fmt: skip


def test_what_was_tried_on_this_cpu_decides_attention_and_execution() -> None:
    plan = planned("sd15", replace(processor(16), trial=TRIED))
    assert (plan.setup.attention, plan.setup.execution, plan.setup.blocks) == ("blocked", "packed", TRIED.blocks)
    assert "0.60 times as long as the fused kernel" in why(plan, "attention")
    assert "0.70 times as long as diffusers'" in why(plan, "execution")
    as_diffusers = planned(
        "sd15", replace(processor(16), trial=TRIED), pins={"attention": "fused", "execution": "eager"}
    )
    assert as_diffusers.slowdown == pytest.approx(5.0 / 3.3, abs=0.05)  # the UNet's, in a whole image
    assert as_diffusers.setup.blocks == ()


def test_ways_that_are_slower_here_or_faster_only_by_noise_are_not_chosen() -> None:
    slower = Trial(dtype="bf16", attention={"fused": 2.0, "blocked": 2.4}, execution={"eager": 3.0, "packed": 2.97})
    plan = planned("sd15", replace(processor(16), trial=slower))
    assert (plan.setup.attention, plan.setup.execution) == ("fused", "eager")


@pytest.mark.parametrize(
    ("seconds", "choice", "why_"),
    [
        (1.1, "batched", "one after the other takes 1.10 times as long"),
        (0.97, "batched", "one after the other takes 0.97 times as long"),
        (0.8, "in-turn", "tried here, 0.80 times as long as in one call"),
    ],
)
def test_guidance_goes_the_way_that_was_faster_here(seconds: float, choice: str, why_: str) -> None:
    tried = replace(TRIED, guidance={"batched": 1.0, "in-turn": seconds})
    plan = planned("sd15", replace(processor(16), trial=tried))
    assert plan.setup.guidance == choice and why_ in why(plan, "guidance")


def test_a_cpu_on_which_nothing_was_tried_draws_as_diffusers_does_and_says_so() -> None:
    plan = planned("sd15", processor(16))
    assert (plan.setup.attention, plan.setup.execution) == ("fused", "eager")
    assert "not tried on this machine yet" in why(plan, "execution")


def test_a_trial_in_another_number_type_decides_nothing() -> None:
    plan = planned("sd15", replace(processor(16), trial=TRIED), pins={"dtype": "fp32"})
    assert (plan.setup.attention, plan.setup.execution) == ("fused", "eager")


def test_a_cpu_without_bf16_units_stays_in_fp32() -> None:
    plan = planned("sd15", processor(16, isa="avx2"))
    assert (plan.setup.dtype, plan.setup.attention) == ("fp32", "fused")


def test_a_probe_overrules_the_instruction_set() -> None:
    assert planned("sd15", processor(16, bf16="unavailable")).setup.dtype == "fp32"
    assert planned("sd15", processor(16, isa="avx2", bf16="probed")).setup.dtype == "bf16"


def test_max_ram_keeps_parts_on_disk_until_needed() -> None:
    plan = planned("sd15", processor(16), max_ram=int(2.5 * GIB))
    assert plan.fits
    assert plan.setup.placement == "disk"
    assert plan.footprint.host_peak <= plan.budget.host < 2.5 * GIB


def test_a_mac_shares_its_memory_and_offloads_nothing_to_itself() -> None:
    plan = planned("sdxl", mac(16))
    assert plan.setup.dtype == "fp16"
    assert plan.setup.placement in ("resident", "drop-encoders", "disk")
    assert plan.setup.attention == "fused"


def test_max_vram_lowers_the_budget_of_a_gpu() -> None:
    plan = planned("sdxl", gpu(24), max_vram=6 * GIB)
    assert plan.budget.device == int(0.955 * 5.5 * GIB)
    assert plan.footprint.device_peak <= plan.budget.device


@pytest.mark.parametrize("hardware", [processor(16), mac(16)], ids=["cpu", "mps"])
def test_max_vram_without_a_gpu_is_a_usage_error_that_names_max_ram(hardware: Hardware) -> None:
    with pytest.raises(Usage, match="use --max-ram") as caught:
        planned("sd15", hardware, max_vram=4 * GIB)
    assert caught.value.code == 2
    assert caught.value.hint == "--max-ram 4"


def test_what_does_not_fit_is_refused_with_numbers_and_a_size_that_fits() -> None:
    plan = planned("sd15", gpu(1, ram=4), size=2048)
    assert not plan.fits
    error = refused(plan)
    assert error.code == 4
    assert error.details["need"] > error.details["budget"]
    assert "2048×2048 does not fit" in error.message
    assert error.hint.startswith("the same command with --size ")
    width, height = map(int, error.hint.rsplit(" ", 1)[1].split("x"))
    assert planned("sd15", gpu(1, ram=4), size=(width, height)).fits


def test_a_batch_that_does_not_fit_gets_the_hint_of_a_smaller_one() -> None:
    plan = planned("sd15", gpu(4, ram=16), size=1536, count=64, batch_size=64)
    assert not plan.fits
    assert refused(plan).hint == "the same command with --batch-size 1"


def test_fp8_is_shown_but_chosen_only_when_pinned() -> None:
    plan = planned("sdxl", gpu(4, ram=4))
    assert any(row.setup.storage == "fp8" and row.fits for row in plan.alternatives)
    assert plan.setup.storage == "same"
    assert not plan.fits
    assert refused(plan).hint  # there is always a hint
    asked = planned("sdxl", gpu(4, ram=4), pins={"storage": "fp8"})
    assert asked.fits and asked.setup.storage == "fp8"
    assert [warning.code for warning in asked.warnings] == ["lossy"]


def test_the_table_of_setups_compares_a_gpu_with_the_cpu() -> None:
    plan = planned("sdxl", gpu(8))
    last = plan.alternatives[-1]
    assert last.setup.device == "cpu" and last.device_peak == 0
    assert last.slowdown > 5
    assert sum(row.chosen for row in plan.alternatives) == 1


def test_rows_say_what_is_too_much_and_which_is_chosen() -> None:
    plan = planned("sdxl", gpu(8, free=7.1))
    resident = next(
        row for row in plan.alternatives if row.setup.placement == "resident" and row.setup.storage == "same"
    )
    assert not resident.fits and resident.because == "2.2 GiB too much"
    assert next(row for row in plan.alternatives if row.chosen).because == "fastest fit"


def test_an_unusual_size_and_few_steps_give_a_warning() -> None:
    plan = planned("sdxl", gpu(24), size=512, steps=6)
    assert {warning.code for warning in plan.warnings} == {"size-not-native", "few-steps"}
    assert planned("sdxl", gpu(24)).warnings == ()


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    plan = planned("sdxl", gpu(6))
    written = schema.to_json(plan)
    again = schema.from_json(Plan, written)
    assert schema.to_json(again) == written
    assert written["schema"] == "sdcli.plan/1"
    assert list(written["footprint"]["phases"][0])[:3] == ["name", "device", "host"]
    assert {row["slot"] for row in written["decisions"]} >= {"dtype", "storage", "placement", "vae_dtype"}


def test_an_image_drawn_alone_needs_less_than_one_of_a_batch() -> None:
    together = planned("sd15", gpu(8), count=4, batch_size=4)
    alone = planned("sd15", gpu(8), count=4, batch_size=4, batch_invariant=True)
    assert together.batches == alone.batches == ((0, 1, 2, 3),)

    def work(plan: Plan) -> int:
        return next(phase.work for phase in plan.footprint.phases if phase.name == "denoise")

    assert work(alone) < work(together) / 2


def test_a_stream_of_prompts_is_not_planned_with_encoders_that_come_back_for_each() -> None:
    """Dropped encoders make room once; with stdin they, and the UNet, would be read from disk again for every line."""
    request, model, hardware = asking("sdxl"), known_model("sdxl"), gpu(7)
    known = make_plan(request, model, hardware, {})
    assert known.setup.placement == "drop-encoders"
    coming = make_plan(request, model, hardware, {}, more=True)
    assert coming.fits and coming.setup.placement == "model-offload"
    asked = make_plan(replace(request, pins={"placement": "drop-encoders"}), model, hardware, {}, more=True)
    assert asked.slowdown > coming.slowdown > known.slowdown


def test_a_run_of_many_windows_pays_for_reading_the_weights_again() -> None:
    request, model = asking("sdxl", count=65, pins={"placement": "drop-encoders"}), known_model("sdxl")
    once = make_plan(replace(request, seeds=tuple(range(64)), num_images=64), model, gpu(7), {})
    assert make_plan(request, model, gpu(7), {}).slowdown > once.slowdown
