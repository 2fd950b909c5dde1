"""Random sweeps beside single runs of each of their cells, and the memory that a sweep of many cells takes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import make_checkpoint  # noqa: E402
from sdcli.asking import planning  # noqa: E402
from sdcli.draw import prompts, quiet  # noqa: E402
from sdcli.draw.local import Engine  # noqa: E402
from sdcli.events import Decoded, Loaded  # noqa: E402
from sdcli.plan.plan import Plan  # noqa: E402
from sdcli.request import samplers  # noqa: E402

NAME = "sweeps"
CLAIM = (
    "Every cell of 200 random sweeps is the job of a single run with its flags; of 20 of them, drawn with tiny SD1.5, "
    "every image has the pixels of its single run, the model is loaded and each prompt encoded once. A cell takes at "
    "most 1 kB of memory more than an image of a run without a sweep, the grid and the page included."
)
SWEEPS, DRAWN, MOST_CELLS, MOST_GROWTH = 200, 20, 24, 1_000
FEW, MANY = 200, 2_000
VALUES: dict[str, tuple[str, ...]] = {
    "guidance": ("1", "2.5", "7", "3..5", "0.5..1.5:0.5"), "steps": ("2", "3", "4", "5..6"),
    "sampler": tuple(f'"{one.name}"' for one in samplers.SAMPLERS if one.name not in ("LCM", "TCD", "PNDM")),
    "seed": ("1", "9", "4..6"), "size": ("64x64", "64x96", "96x64"), "clip-skip": ("1", "2"),
    "negative-prompt": ("blurry", '"grey, dull"', "{dark|pale}"), "emphasis": ("a1111", "comfy", "none"),
    "scheduler": ("sgm-uniform", "uniform"), "rng": ("cpu", "nv"),
}  # fmt: skip
WORDS = ("S/R cat,dog,(fox:1.2)", "S/R red,blue,{green|grey}")
PROMPT = "a {small|large} cat on a red mat"


def main() -> list[tuple[str, str, str, bool | None]]:
    chance = random.Random(28)
    with tempfile.TemporaryDirectory() as base, quiet.libraries_silenced():
        model = str(make_checkpoint.write_folder(Path(base) / "tiny", "sd15", tiny=True))
        same = cells = drawn = alike = once = 0
        for number in range(SWEEPS):
            swept = _sweep(chance)
            plan = _plan(model, sweep=swept)
            singles = [_plan(model, **flags) for flags in _flags(plan)]
            cells += len(singles)
            same += sum(_bare(job) == _bare(single.jobs[0]) for job, single in zip(plan.jobs, singles, strict=True))
            if number < DRAWN:
                pixels, loads, encoded = _drawn(plan)
                drawn += len(pixels)
                alike += sum(
                    pixels[index] == _drawn(replace(single, setup=plan.setup))[0][0]
                    for index, single in enumerate(singles)
                )
                once += loads == 1 and len(encoded) == len(set(encoded)) > 0
    swept, plain = _growth(swept=True), _growth(swept=False)
    return [
        ("cells that are their single run's job", f"{same:,} of {cells:,}, in {SWEEPS} sweeps", "all", same == cells),
        ("images with their single run's pixels", f"{alike} of {drawn}", "all", alike == drawn > 0),
        ("sweeps that load once and encode each text once", f"{once} of {DRAWN}", "all", once == DRAWN),
        (f"memory of {MANY:,} cells beside {FEW}", f"{swept:,.0f} bytes a cell; {plain:,.0f} an image without a sweep",
         f"≤ {MOST_GROWTH:,} more", swept - plain <= MOST_GROWTH),
    ]  # fmt: skip


def _sweep(chance: random.Random) -> list[str]:
    while True:
        names = chance.sample(list(VALUES), chance.randrange(1, 4))
        if "scheduler" in names and "sampler" in names:
            continue  # not every sampler takes every schedule
        swept = [f"{name}={','.join(_some(chance, VALUES[name]))}" for name in names]
        swept += [chance.choice(WORDS)] if chance.random() < 0.4 else []
        chance.shuffle(swept)
        from sdcli.errors import Usage
        from sdcli.request import sweeps

        try:
            axes = sweeps.read(swept)
        except Usage:
            continue  # a value twice
        cells = 1
        for axis in axes:
            cells *= len(axis.values)
        if cells <= MOST_CELLS:
            return swept


def _some(chance: random.Random, values: tuple[str, ...]) -> list[str]:
    return chance.sample(values, min(len(values), chance.randrange(1, 4)))


def _plan(model: str, sweep: list[str] | None = None, **flags: Any) -> Plan:
    usual = {
        "words": (PROMPT,), "model": model, "steps": "2", "guidance": "3", "size": "64x64", "sampler": "Euler",
        "seeds": "5", "dtype": "fp32", "compile": "off", "pins": ["execution=eager"],
    }  # fmt: skip
    return planning.plan_for({**usual, **flags, **({"sweep": sweep} if sweep else {})}, "plan").plan


def _flags(plan: Plan) -> Iterator[dict[str, Any]]:
    """What one would type for each cell, from its name alone."""
    fields = {
        "guidance": "guidance", "steps": "steps", "sampler": "sampler", "seed": "seeds", "size": "size",
        "clip-skip": "clip_skip", "negative-prompt": "negative_prompt", "emphasis": "emphasis",
        "scheduler": "scheduler", "rng": "rng",
    }  # fmt: skip
    named = _places(plan)
    for job in plan.jobs:
        assert job.id is not None
        flags: dict[str, Any] = {}
        prompt = PROMPT
        for axis, value in zip(plan.request.sweep, named[job.id], strict=True):
            if axis.name.startswith("S/R "):
                prompt = prompt.replace(axis.name[4:], value)
            else:
                flags[fields[axis.name]] = value
        yield {**flags, "words": (prompt,)}


def _places(plan: Plan) -> dict[str, tuple[str, ...]]:
    from sdcli.request import sweeps

    axes = plan.request.sweep
    return {
        name: tuple(axis.values[number] for axis, number in zip(axes, place, strict=True))
        for name, place in sweeps.cells(axes).items()
    }


def _bare(job: Any) -> Any:
    return replace(job, index=0, id=None)


def _drawn(plan: Plan) -> tuple[dict[int, bytes], int, list[Any]]:
    """Pixels by index, how often the UNet was loaded, and every text that went through the encoder."""
    pixels, loads, encoded = {}, 0, []
    original = prompts.Prompts._encoded

    def seen(self: prompts.Prompts, encoder: Any, key: Any) -> Any:
        encoded.append(key)
        return original(self, encoder, key)

    with mock.patch.object(prompts.Prompts, "_encoded", seen), Engine() as engine:
        for event in engine.run(plan):
            if isinstance(event, Decoded):
                pixels[event.index] = bytes(event.pixels)
            loads += isinstance(event, Loaded) and event.component == "unet"
    return pixels, loads, encoded


def _growth(*, swept: bool) -> float:
    return (_peak(MANY, swept) - _peak(FEW, swept)) / (MANY - FEW)


def _peak(images: int, swept: bool) -> int:
    """Of a whole command, in a process of its own."""
    quick = "/dev/shm" if os.path.isdir("/dev/shm") else None  # thousands of files are synced
    with tempfile.TemporaryDirectory(dir=quick) as folder:
        words = ["generate", "a cat", "--engine", "fake", "--size", "64x64", "--seed", "1", "-o", folder, "-q"]
        words += ["--sweep", f"guidance=0.01..{images / 100:g}:0.01"] if swept else ["-n", str(images)]
        code = (
            "import resource, subprocess, sys; "
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, sys.executable, "-m", "sdcli", *words]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)) * (1 if sys.platform == "darwin" else 1024)
