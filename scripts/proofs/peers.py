"""sdcli beside diffusers' own ways to save memory, full size, on pretend GPUs of 1 to 24 GiB."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from scripts.gpu import inside  # noqa: E402
from scripts.proofs.card import MIB, write_models  # noqa: E402
from sdcli.draw import local  # noqa: E402
from sdcli.errors import OutOfMemory  # noqa: E402
from sdcli.events import Decoded, Step  # noqa: E402
from sdcli.plan.plan import Plan, Setup  # noqa: E402
from sdcli.plan.techniques import placement  # noqa: E402
from tests.pretend_gpu import Device, Pretended, device, pretend  # noqa: E402

NAME = "peers"
CLAIM = (
    "On pretend GPUs of 1 to 24 GiB sdcli draws SD 1.5 and SDXL wherever diffusers does, whatever is enabled there, in "
    "fewer bytes or with fewer bytes copied per step."
)
PAGE = ROOT / "docs" / "benchmarks" / "memory-peers.md"
SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24)  # GiB, all of it free
SIDES = {"sd15": 512, "sdxl": 1024}
USUAL_STEPS, STEPS = 25, 4  # planned for, and drawn: bytes do not depend on how many there are


@dataclass(frozen=True)
class Drawn:
    """One image on one GPU."""

    size: int  # GiB
    how: str
    peak: int  # bytes of tensors
    per_step: int  # bytes copied to the GPU during one step


def _plain(pipeline: Any) -> None:
    pipeline.to("cuda")


def _model_offload(pipeline: Any) -> None:
    pipeline.enable_model_cpu_offload(device="cuda")


def _sequential(pipeline: Any) -> None:
    pipeline.enable_sequential_cpu_offload(device="cuda")


def _group(pipeline: Any) -> None:
    """Without the VAE: SDXL's, which decodes in fp32, fails under it."""
    pipeline.enable_group_offload(
        onload_device=torch.device("cuda"), offload_type="leaf_level", use_stream=True, record_stream=True,
        exclude_modules=["vae"],
    )  # fmt: skip
    pipeline.vae.to("cuda")


def _tiling(pipeline: Any) -> None:
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()


PEERS: dict[str, tuple[Callable[[Any], None], ...]] = {
    "as it comes": (_plain,),
    "slicing and tiling": (_plain, _tiling),
    "model offload": (_model_offload,),
    "model offload, slicing and tiling": (_model_offload, _tiling),
    "group offload by leaf, slicing and tiling": (_group, _tiling),
    "sequential offload, slicing and tiling": (_sequential, _tiling),
}


def gpu(size: int) -> Device:
    return device(f"{size}GiB", capability="8.9")


def with_diffusers(folder: Path, family: str, peer: str) -> list[Drawn]:
    """On the smallest GPU that this way draws on, and on all larger ones, where it takes the same."""
    for size in SIZES:
        with pretend(gpu(size), blank=True) as pretended:
            try:
                peak, per_step = _pipeline_drawn(folder / family, family, PEERS[peer], pretended)
            except torch.OutOfMemoryError:
                continue
            finally:
                gc.collect()
        return [Drawn(larger, peer, peak, per_step) for larger in SIZES if larger >= size]
    return []


def _pipeline_drawn(
    path: Path, family: str, enabled: tuple[Callable[[Any], None], ...], pretended: Pretended
) -> tuple[int, int]:
    pipeline = inside.pipeline_of(path, torch.float16)
    for enable in enabled:
        enable(pipeline)
    copied = []

    def after_step(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        copied.append(pretended.traffic.to_device)
        return values

    side = SIDES[family]
    pipeline("a cat", width=side, height=side, num_inference_steps=STEPS, callback_on_step_end=after_step)
    return pretended.allocator().most_allocated - pretended.workspace(), copied[1] - copied[0]


def planned(folder: Path, family: str, size: int) -> list[Plan]:
    """As planned for this GPU, then with each setup that the plan lists as fitting, and with each placement pinned: one
    --pin or --max-vram away."""
    with pretend(gpu(size), blank=True):
        plan, drawn = (_plan(folder, family, steps) for steps in (USUAL_STEPS, STEPS))
        pinned = [_plan(folder, family, USUAL_STEPS, placement=choice) for choice in placement.TECHNIQUE.choices]
    if not plan.fits:
        return []
    setups = [row.setup for row in plan.alternatives if row.fits] + [one.setup for one in pinned if one.fits]
    others = filter(_as_peers_draw, setups)
    return [replace(drawn, setup=setup, fallbacks=()) for setup in dict.fromkeys((plan.setup, *others))]


def _plan(folder: Path, family: str, steps: int, **pins: str) -> Plan:
    side = SIDES[family]
    return inside.plan_for(folder / family, steps=steps, width=side, height=side, pins=pins)


def with_sdcli(plans: list[tuple[int, Plan]]) -> list[Drawn]:
    """One setup on the GPUs it was planned for: drawn on the smallest that holds it; on larger ones it takes the
    same."""
    for smallest, plan in plans:
        drawn = _plan_drawn(plan, smallest)
        if drawn is not None:
            return [replace(drawn, size=size) for size, _ in plans if size >= smallest]
    return []


def _planned_for(setup: Setup, plans: list[list[Plan]]) -> list[tuple[int, Plan]]:
    rows = zip(SIZES, plans, strict=True)
    return [(size, plan) for size, row in rows for plan in row if plan.setup == setup]


def _as_peers_draw(setup: Setup) -> bool:
    """On the GPU, with the model's weights as they are, and kept in memory between uses."""
    on_the_gpu = setup.device.startswith("cuda") and setup.vae != "cpu"
    return on_the_gpu and setup.storage == "same" and setup.placement != "disk"


def _plan_drawn(plan: Plan, size: int) -> Drawn | None:
    copied, images = [], 0  # bytes copied when each step is reported, which is after the next one was launched
    with pretend(gpu(size), blank=True) as pretended:
        try:
            for event in local.run(plan):
                if isinstance(event, Step):
                    copied.append(pretended.traffic.to_device)
                images += isinstance(event, Decoded)
        except OutOfMemory:
            return None
        gc.collect()
        peak = pretended.allocator().most_allocated - pretended.workspace()
        return Drawn(size, f"{plan.setup.placement}, {plan.setup.vae}", peak, copied[1] - copied[0])


# --- the proof


def main() -> list[tuple[str, str, str, bool]]:
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        folder = Path(name)
        write_models(folder)
        theirs, ours = {}, {}
        for family in SIDES:
            found = workers.map(partial(with_diffusers, folder, family), PEERS)
            theirs[family] = [drawn for peer in found for drawn in peer]
            plans = list(workers.map(partial(planned, folder, family), SIZES))
            setups = dict.fromkeys(plan.setup for row in plans for plan in row)
            found = workers.map(with_sdcli, [_planned_for(setup, plans) for setup in setups])
            taken = dict(zip(setups, found, strict=True))
            ours[family] = {
                size: [drawn for plan in row for drawn in taken[plan.setup] if drawn.size == size]
                for size, row in zip(SIZES, plans, strict=True)
            }
            print(*lines_of(family, theirs[family], ours[family]), sep="\n", flush=True)
    PAGE.write_text(page(theirs, ours), encoding="utf-8")
    return [row for family in SIDES for row in rows(family, theirs[family], ours[family])]


def rows(family: str, theirs: list[Drawn], ours: dict[int, list[Drawn]]) -> list[tuple[str, str, str, bool]]:
    where = [f"{size} GiB" for size in SIZES if any(drawn.size == size for drawn in theirs) and not ours[size]]
    beaten = [
        f"{peer.how} on {peer.size} GiB" for peer in theirs if not any(_better(one, peer) for one in ours[peer.size])
    ]
    drawn = sum(bool(ours[size]) for size in SIZES)
    return [
        (f"{family}: drawn", f"{drawn} of {len(SIZES)} sizes" + _but(where), "wherever diffusers does", not where),
        (
            f"{family}: some setup takes fewer bytes, or copies fewer in no more",
            f"{len(theirs) - len(beaten)} of {len(theirs)}" + _but(beaten), "all", not beaten,
        ),
    ]  # fmt: skip


def _better(one: Drawn, peer: Drawn) -> bool:
    """No more bytes and no more of them copied in a step, to the MiB."""
    return one.peak // MIB <= peer.peak // MIB and one.per_step // MIB <= peer.per_step // MIB


def _but(exceptions: list[str]) -> str:
    return f"; not {', '.join(exceptions)}" if exceptions else ""


def lines_of(family: str, theirs: list[Drawn], ours: dict[int, list[Drawn]]) -> list[str]:
    lines = ["| GPU | sdcli | " + " | ".join(PEERS) + " |", "| ---: |" + " --- |" * (len(PEERS) + 1)]
    for size in SIZES:
        peers = {drawn.how: drawn for drawn in theirs if drawn.size == size}
        cells = [_cell(peers.get(how)) for how in PEERS]
        planned = f"{ours[size][0].how}: {_cell(ours[size][0])}" if ours[size] else "–"
        lines.append(f"| {size} GiB | {planned} | {' | '.join(cells)} |")
    return lines


def _cell(drawn: Drawn | None) -> str:
    if drawn is None:
        return "–"
    return f"{drawn.peak / MIB:,.0f}" + (f" + {drawn.per_step / MIB:,.0f} a step" if drawn.per_step else "")


def page(theirs: dict[str, list[Drawn]], ours: dict[str, dict[int, list[Drawn]]]) -> str:
    lines = [
        "# Memory on a GPU: sdcli beside diffusers",
        "",
        "One image, full size, fp16, with guidance, on pretend GPUs that are free but for the context: MiB of tensors "
        "at the peak, and MiB copied to the GPU in each step where weights do not stay. `–`: it runs out of memory. "
        "diffusers' columns are its pipeline as it comes and with what it offers to save memory. sdcli decides by "
        "itself, and takes the fastest setup that fits. Written by `scripts/prove peers`; nothing is edited by hand. "
        "A pretend GPU cannot tell time.",
    ]
    for family, side in SIDES.items():
        lines += ["", f"## {family}, {side}×{side}", "", *lines_of(family, theirs[family], ours[family])]
    return "\n".join(lines) + "\n"
