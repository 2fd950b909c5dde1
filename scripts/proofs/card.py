"""Full-size models on a pretend GPU: every placement, storage and way to decode, predicted beside counted."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from sdcli.asking import controls, references, refiners, upscalers  # noqa: E402
from sdcli.draw import local  # noqa: E402
from sdcli.events import Degraded, Memory  # noqa: E402
from sdcli.images import read  # noqa: E402
from sdcli.machine.hardware import Hardware  # noqa: E402
from sdcli.models import resolve  # noqa: E402
from sdcli.plan import calibration  # noqa: E402
from sdcli.plan.plan import Phase, Plan  # noqa: E402
from sdcli.plan.planner import make_plan  # noqa: E402
from sdcli.request.jobs import make_jobs  # noqa: E402
from sdcli.request.request import Control, Reference, Refiner, Request  # noqa: E402
from sdcli.sizes import GIB  # noqa: E402
from tests.pretend_gpu import Device, allocator, pretend  # noqa: E402

NAME = "card"
CLAIM = (
    "The memory of full-size models on a pretend GPU: each stage's tensors as predicted, to 5 %, and the planner asks "
    "for enough, gaps between blocks included."
)
GOAL = 0.05
IMAGE, UPSCALER = "image.png", "x4.safetensors"
PAGE = ROOT / "docs" / "benchmarks" / "memory-card.md"
MIB = 1 << 20
SHAPES = (("sd15", 512), ("sd15", 768), ("sdxl", 1024))
PLACEMENTS = ("resident", "drop-encoders", "model-offload", "group-offload", "disk")
STORAGES = ("same", "fp8")
DECODES = ("whole", "tile-512", "tile-256")
BATCHES = (1, 4)
MODES = (
    "from an image", "twice the size", "twice the image", "twice by a model", "steered", "adapted", "united",
    "like an image",
)  # fmt: skip
NETS = {"steered": "net", "adapted": "adapter", "united": "union"}
# The IP-Adapter of each family with the most to count, and its image encoder.
ADAPTERS = {"sd15": ("plus", "ViT-H"), "sdxl": ("plain", "ViT-bigG")}
REFINED = "refined"
TEMPLATE = Hardware(
    device="cuda:0", name="a GPU", source="as-if", total=0, free=0, ram_total=256 * GIB, ram_free=256 * GIB,
    capability="8.9", threads=1, dtypes={"fp32": "table", "fp16": "table", "bf16": "table"},
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    family: str
    side: int
    placement: str
    storage: str
    vae: str
    batch: int
    mode: str = ""

    @property
    def shape(self) -> str:
        return f"{self.family}-{self.side}"

    @property
    def setup(self) -> str:
        mode = f", {self.mode}" if self.mode else ""
        return f"{self.placement} {self.storage} {self.vae} ×{self.batch}{mode}"


@dataclass(frozen=True)
class Stage:
    """Bytes of one stage, without the matrix library's workspace."""

    name: str
    predicted: int
    tensors: int  # counted

    @property
    def error(self) -> float:
        return self.predicted / self.tensors - 1 if self.tensors else 0.0


@dataclass(frozen=True)
class Counted:
    case: Case
    stages: tuple[Stage, ...]
    asked: int  # bytes that must be free, beside the context, before the planner takes the setup
    least: int  # bytes that it takes, gaps between blocks included
    left: int  # bytes still held at the end

    @property
    def enough(self) -> bool:
        return self.least <= self.asked


def cases() -> list[Case]:
    drawn = [
        Case(family, side, *choices)
        for (family, side), *choices in itertools.product(SHAPES, PLACEMENTS, STORAGES, DECODES, BATCHES)
    ]
    modes = list(itertools.product(SHAPES, PLACEMENTS, ("whole", "tile-512"), MODES))
    modes += itertools.product(SHAPES[-1:], PLACEMENTS, ("whole", "tile-512"), (REFINED,))
    return drawn + [
        Case(family, side, placement, "same", vae, 1, mode)
        for (family, side), placement, vae, mode in modes
        if mode != "united" or family == "sdxl"
    ]


def plan_of(case: Case, folder: Path, **pins: str) -> Plan:
    request = Request(
        prompts=("a cat",), seeds=tuple(range(case.batch)), num_images=case.batch, batch_size=case.batch,
        width=case.side, height=case.side, steps=2 if case.mode == REFINED else 1, guidance=5.0, sampler="Euler",
        **_asked(case, folder),
        pins={"placement": case.placement, "storage": case.storage, "vae": case.vae, "dtype": "fp16", **pins},
    )  # fmt: skip
    hardware = replace(TEMPLATE, total=200 * GIB, free=200 * GIB)
    jobs, model, nets = controls.gather(make_jobs(request), resolve.at(folder / case.family), ())
    model, seen = references.gather(request, jobs, model, ())
    jobs, model, models = upscalers.gather(jobs, model, ())
    refiner = resolve.at(folder / "refiner") if case.mode == REFINED else None
    jobs, model, others = refiners.gather(refiner, jobs, model)
    return make_plan(request, model, hardware, {}, jobs=jobs, adapters=(*nets, *seen, *models, *others))


def _asked(case: Case, folder: Path) -> dict[str, Any]:
    if case.mode == "from an image":
        return {"image": (read.look(folder / IMAGE),), "strength": 1.0}
    if case.mode == REFINED:
        return {"refiner": Refiner(model=str(folder / "refiner"))}
    if case.mode == "like an image":
        adapter = str(folder / f"{case.family}-like" / "ip-adapter.safetensors")
        return {"reference": (Reference(image=read.look(folder / IMAGE)),), "reference_model": adapter}
    if case.mode in NETS:
        image, name = read.look(folder / IMAGE), NETS[case.mode]
        told = ("canny", "depth") if case.mode == "united" else ("",)
        return {
            "control": tuple(Control(net=str(folder / f"{case.family}-{name}"), image=image, shows=one) for one in told)
        }
    if case.mode:
        ways = {"twice the size": "latent", "twice the image": "lanczos", "twice by a model": str(folder / UPSCALER)}
        upscaler = ways[case.mode]
        return {"hires": 2.0, "hires_steps": 1, "hires_strength": 1.0, "upscaler": upscaler}
    return {}


def asked_for(plan: Plan) -> int:
    return int(plan.footprint.device_peak / calibration.CUDA_SAFETY) + 1


def tensors_of(phase: Phase) -> int:
    """Of a forecast: without workspace and gaps."""
    if not phase.work:
        return phase.device
    blocks, gaps = calibration.CUDA_BLOCKS, calibration.CUDA_GAPS
    return phase.weights + phase.parked + int((phase.work - calibration.CUDA_WORKSPACE) * blocks / (blocks + gaps))


def count(folder: Path, case: Case) -> Counted:
    """One image of zeros on a GPU that is large enough."""
    plan = plan_of(case, folder)
    predicted = {phase.name: tensors_of(phase) for phase in plan.footprint.phases}
    counted: dict[str, Stage] = {}  # a phase comes more than once where parts are read again
    gpu = Device(total=plan.hardware.total, free=plan.hardware.total, capability=(8, 9))
    with pretend(gpu, blank=True) as pretended:
        for event in local.run(plan):
            if isinstance(event, Degraded):
                raise AssertionError(event)
            if isinstance(event, Memory) and event.phase in predicted:
                tensors = (event.allocated_peak or 0) - pretended.workspace()
                stage = Stage(event.phase, predicted[event.phase], tensors)
                counted[stage.name] = max(stage, counted.get(stage.name, stage), key=lambda one: one.tensors)
        gc.collect()
        least = allocator.least(pretended.allocator().log)
        return Counted(case, tuple(counted.values()), asked_for(plan), least, pretended.held())


# --- the proof


def folder_for_models() -> tempfile.TemporaryDirectory[str]:
    """Where the system has files in memory, there: a hole takes none, and is read forty times as fast as from a disk,
    whose pages are first allocated and cleared."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def write_models(folder: Path) -> None:
    """Full size in shape, and holes on disk."""
    from scripts import make_checkpoint

    for family in dict.fromkeys(family for family, _ in SHAPES):
        make_checkpoint.write_folder(folder / family, family, dtype="fp16", seed=None)
        make_checkpoint.write_controlnet_folder(folder / f"{family}-net", family, dtype="fp16", seed=None)
        like, (kind, encoder) = folder / f"{family}-like", ADAPTERS[family]
        make_checkpoint.write_image_encoder(like / "image_encoder", encoder, dtype="fp16", seed=None)
        make_checkpoint.write_ip_adapter(
            like / "ip-adapter.safetensors", family, kind, encoder=encoder, dtype="fp16", seed=None
        )
        make_checkpoint.write_t2i_folder(folder / f"{family}-adapter", family, dtype="fp16", seed=None)
    make_checkpoint.write_folder(folder / "refiner", "refiner", dtype="fp16", seed=None)
    make_checkpoint.write_union_folder(folder / "sdxl-union", dtype="fp16", seed=None)
    Image.new("RGB", (600, 500)).save(folder / IMAGE)
    make_checkpoint.write_upscaler(folder / UPSCALER, dtype="fp16", seed=None)


def main() -> list[tuple[str, str, str, bool]]:
    counted = []
    with folder_for_models() as name, ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        folder = Path(name)
        write_models(folder)
        for result in workers.map(partial(count, folder), cases()):
            counted.append(result)
            print(f"  {line(result)}", flush=True)
    PAGE.write_text(page(counted), encoding="utf-8")
    return rows(counted)


def rows(counted: list[Counted]) -> list[tuple[str, str, str, bool]]:
    table = []
    for family, side in SHAPES:
        of_shape = [one for one in counted if one.case.shape == f"{family}-{side}"]
        stages = [(stage, one.case) for one in of_shape for stage in one.stages]
        worst, case = max(stages, key=lambda pair: abs(pair[0].error))
        seen = f"{len(of_shape)} setups, at worst {worst.error:+.1%} ({case.setup}, {worst.name})"
        table.append((f"{family} {side}×{side}: tensors", seen, f"± {GOAL:.0%}", abs(worst.error) <= GOAL))
        short = [one.case.setup for one in of_shape if not one.enough]
        seen = f"{len(of_shape) - len(short)} of {len(of_shape)}" + (f"; not {', '.join(short)}" if short else "")
        table.append((f"{family} {side}×{side}: the planner asks for enough", seen, "all", not short))
        left = sum(one.left for one in of_shape)
        table.append((f"{family} {side}×{side}: left on the GPU", f"{left} bytes", "0", not left))
    return table


def line(result: Counted) -> str:
    worst = max(result.stages, key=lambda stage: abs(stage.error))
    need = f"needs {result.least / MIB:.0f} MiB of {result.asked / MIB:.0f} asked for"
    return f"{result.case.shape} {result.case.setup}: {worst.error:+.1%} in {worst.name}; {need}"


def page(counted: list[Counted]) -> str:
    lines = [
        "# Memory on a GPU: predicted and counted",
        "",
        "Full-size models in fp16 on a pretend GPU (`tests/pretend_gpu/`): the whole path runs, tensors have shapes "
        "and no numbers, and every byte is handed out by the rules of torch's caching allocator. Written by "
        "`scripts/prove card`; nothing is edited by hand.",
        "",
        "Each stage's tensors, predicted / counted in MiB, at 1 and 4 images a batch. Not in these figures: the "
        f"matrix library's workspace, {calibration.CUDA_WORKSPACE // MIB} MiB in a plan, and the gaps between blocks. "
        "`error`: the stage furthest off. `least`: the MiB, workspace and gaps included, with which the same calls of "
        "the allocator still succeed. `asked`: those that must be free, beside the context, before the planner takes "
        "this setup.",
        "",
        "What a pretend GPU cannot tell: time, the driver's context, what cuDNN takes while it convolves.",
    ]
    for family, side in SHAPES:
        of_shape = [one for one in counted if one.case.shape == f"{family}-{side}"]
        names = [stage.name for stage in of_shape[0].stages]
        lines += ["", f"## {family}, {side}×{side}", ""]
        lines += [
            "| setup | " + " | ".join(names) + " | error | least | asked |",
            "| --- |" + " ---: |" * (len(names) + 3),
        ]
        lines += [_row(one) for one in of_shape]
    return "\n".join(lines) + "\n"


def _row(one: Counted) -> str:
    cells = [f"{stage.predicted / MIB:,.0f} / {stage.tensors / MIB:,.0f}" for stage in one.stages]
    worst = max((stage.error for stage in one.stages), key=abs)
    asked = f"{one.asked / MIB:,.0f}" if one.enough else f"**{one.asked / MIB:,.0f}**"
    return f"| {one.case.setup} | {' | '.join(cells)} | {worst:+.1%} | {one.least / MIB:,.0f} | {asked} |"


if __name__ == "__main__":
    print(*main(), sep="\n")
