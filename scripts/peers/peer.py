"""What a peer is, and what all of them draw. A peer is a program of its own, started anew for every image."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

PROMPT, SEED, GUIDANCE = "a lighthouse on a cliff at dawn", 7, 7.0
STRENGTH, WEIGHT = 0.75, 0.6
# From noise; from an image, with STRENGTH; steered by a ControlNet in every step; like an image, by an IP-Adapter.
MODES = ("text", "image", "control", "reference")

Said = dict[str, Any]  # what a run tells of itself: see `tell`


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image, of DPM++ 2M Karras with PROMPT, SEED and GUIDANCE."""

    family: str
    width: int
    height: int
    steps: int
    threads: int  # physical cores
    model: str  # a diffusers folder
    made: str  # a folder for what peers make of the model, once
    image: str = ""  # a PNG to write
    mode: str = "text"

    @property
    def name(self) -> str:
        return f"{self.family} {self.width}x{self.height}" + ("" if self.mode == "text" else f" {self.mode}")

    @property
    def picture(self) -> Path:
        """What is started from, or steers."""
        return Path(self.made) / f"{self.width}x{self.height}.png"

    @property
    def adapter(self) -> Path:
        """The IP-Adapter, with its image encoder beside it."""
        return Path(f"{self.model}-reference") / "ip-adapter.safetensors"

    @property
    def net(self) -> Path:
        """The ControlNet, a diffusers folder."""
        return Path(f"{self.model}-controlnet")


@dataclass(frozen=True, kw_only=True)
class Peer:
    name: str
    how: str  # for the page
    packages: tuple[str, ...]  # on PyPI: their versions stand on the page
    command: Callable[[Job], list[str]]
    missing: Callable[[], str | None]  # why it cannot run here
    files: Callable[[Job], Sequence[Path]]  # what it reads
    prepare: Callable[[Job], list[str]] | None = None  # run once, before all turns
    prepared: str = ""  # what that is called, where users would have to do it as well
    read: Callable[[str], Said] = json.loads  # from the last line of its output
    accepts: tuple[int, ...] = (0,)  # exit codes of a run that drew
    only_if_named: bool = False
    any_width: bool = True  # also models of a few channels
    modes: tuple[str, ...] = ("text",)


def program(module: str, *words: str) -> Callable[[Job], list[str]]:
    """`python -m MODULE WORDS… JOB`."""
    return lambda job: [sys.executable, "-P", "-m", module, *words, json.dumps(asdict(job))]


def job_from(text: str) -> Job:
    return Job(**json.loads(text))


def without(module: str, package: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"not installed (`pip install {package}`)"


def weights_of(job: Job) -> list[Path]:
    return sorted(Path(job.model).rglob("*.safetensors"))


def tell(*, imports: float, load: float, marks: Sequence[float], done: float, dtype: str, threads: int) -> None:
    """The line that the program ends with, in seconds. `marks`: when the steps began, and when each was done."""
    steps = [after - before for before, after in pairwise(marks)]
    print(json.dumps({
        "import": imports, "load": load, "first": steps[0], "steps": steps[1:], "decode": done - marks[-1],
        "dtype": dtype, "threads": threads,
    }))  # fmt: skip
