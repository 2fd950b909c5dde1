"""Runs that are killed, interrupted and started beside each other: nothing finished is lost, and the rest is drawn."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from scripts import forked  # noqa: E402
from sdcli.errors import BadFile  # noqa: E402
from sdcli.record import runs  # noqa: E402

NAME = "runs"
CLAIM = (
    "Runs of sixteen images on the fake engine are killed with SIGKILL, or interrupted, at random moments: no image is "
    "half-written, every finished one is listed, and `sdcli resume`, itself killed now and then, draws the rest with "
    "the pixels of an uninterrupted run. Sixteen runs that draw into one folder at once lose and replace nothing."
)

IMAGES = 16
DRAW = ("--engine", "fake", "--size", "64x64", "-s", "2", "--seed", "1", "-q")
RESUMED_AGAIN = 4  # one of so many runs is killed again while it is resumed, up to three times
TWICE = 5  # one of so many processes is interrupted a second time

Start = Callable[[Sequence[str], Path], int]
Row = tuple[str, str, str, bool]


@dataclass(frozen=True)
class Lab:
    """What the runs have in common: a folder, the pixels to expect by index, how long a run takes, and its images."""

    folder: Path
    pixels: tuple[str, ...]
    seconds: float
    drawing: float
    start: Start


def lab(folder: Path, start: Start = forked.started) -> Lab:
    """From a run that nothing disturbs; the seconds are those of the second one."""
    forked.warmed(folder)
    for name in ("first", "second"):
        began = time.perf_counter()
        assert forked.ended(start(drawing(folder / name), folder / "said")) == 0, (folder / "said").read_text()
        seconds = time.perf_counter() - began
    (records,) = (folder / "second" / "runs").iterdir()
    done = runs.recover(runs.read(records)).done
    saved = [path.stat().st_mtime for path in (folder / "second").glob("*.png")]
    pixels = tuple(done[index].pixel_sha256 for index in range(IMAGES))
    return Lab(folder, pixels, seconds, max(saved) - min(saved), start)


def wait(lab: Lab, folder: Path, moments: random.Random) -> None:
    """Until a random moment of the run; in half of the cases one while it draws."""
    if moments.randrange(2):
        time.sleep(moments.uniform(0.0, lab.seconds))
        return
    until = time.monotonic() + 60
    while not any(folder.glob("*.png")) and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, lab.drawing))


def drawing(folder: Path) -> list[str]:
    return ["generate", "a cat", "-n", str(IMAGES), *DRAW, "-o", str(folder)]


def resuming(records: Path) -> list[str]:
    return ["resume", str(records), "--engine", "fake", "-q"]


# --- what is on disk


def pixels_of(path: Path) -> str:
    with Image.open(path) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def records_in(folder: Path) -> list[Path]:
    """The runs that have begun: those with a line in their journal."""
    found = []
    for path in folder.glob("runs/*"):
        with contextlib.suppress(BadFile):
            runs.read(path)
            found.append(path)
    return found


def unlisted(folder: Path) -> Iterator[str]:
    """Images under their names that no journal has with these bytes; none is repaired first."""
    listed = {}
    for records in records_in(folder):
        for intent in runs.read(records).intents.values():
            listed[intent.file] = (intent.file_sha256, intent.pixel_sha256)
    for path in folder.glob("*.png"):
        found = (hashlib.sha256(path.read_bytes()).hexdigest(), pixels_of(path))
        if listed.get(path.name) != found:
            yield path.name


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


def incomplete(lab: Lab, folder: Path, records: Path) -> Iterator[str]:
    """What a run that was resumed to its end lacks, or has too much."""
    done = runs.recover(runs.read(records)).done
    seen = tuple(pixels_of(folder / done[index].file) if index in done else "" for index in range(IMAGES))
    if seen != lab.pixels:
        yield f"{sum(map(str.__eq__, seen, lab.pixels))} of {IMAGES} images as in an uninterrupted run"
    if len(list(folder.glob("*.png"))) != IMAGES:
        yield f"{len(list(folder.glob('*.png')))} files"


# --- killed


@dataclass(frozen=True)
class End:
    """What became of one run."""

    images: int  # found when it had ended, before it was resumed
    resumed: int  # how often
    wrong: tuple[str, ...]


def killed(lab: Lab, folder: Path, moments: random.Random) -> End:
    said = lab.folder / "said"
    process = lab.start(drawing(folder), said)
    wait(lab, folder, moments)
    os.kill(process, signal.SIGKILL)
    forked.ended(process)
    found = len(list(folder.glob("*.png")))
    wrong = [f"{name} is not whole or not listed" for name in unlisted(folder)]
    return _resumed(lab, folder, moments, found, wrong)


def _resumed(lab: Lab, folder: Path, moments: random.Random, found: int, wrong: list[str]) -> End:
    """The same run brought to its end, in a share of cases killed on the way."""
    begun = records_in(folder)
    if not begun:
        return End(found, 0, (*wrong, *([f"{found} images of no run"] if found else [])))
    said, times = lab.folder / "said", moments.randint(1, 3) if moments.randrange(RESUMED_AGAIN) == 0 else 0
    for _ in range(times):
        process = lab.start(resuming(begun[0]), said)
        time.sleep(moments.uniform(0.0, lab.seconds))
        os.kill(process, signal.SIGKILL)
        forked.ended(process)
        wrong += [f"{name} is not whole or not listed while resumed" for name in unlisted(folder)]
    said.write_bytes(b"")
    code = forked.ended(lab.start(resuming(begun[0]), said))
    wrong += [f"resume ended with {code}: {said.read_text()[-200:]}"] if code else []
    wrong += [*incomplete(lab, folder, begun[0]), *(f"{name} left" for name in left(folder))]
    return End(found, times + 1, tuple(wrong))


# --- interrupted


CODES = {"SIGINT": 130, "SIGTERM": 143}


def interrupted(lab: Lab, folder: Path, moments: random.Random) -> End:
    """By a signal, now and then by two: what is finished stays and is listed, and the rest is drawn."""
    name, said = moments.choice(sorted(CODES)), lab.folder / "said"
    said.write_bytes(b"")
    process = lab.start(drawing(folder), said)
    wait(lab, folder, moments)
    for _ in range(2 if moments.randrange(TWICE) == 0 else 1):
        os.kill(process, getattr(signal, name))
        time.sleep(0.001)
    code, found = forked.ended(process), len(list(folder.glob("*.png")))
    wrong = [f"{name} is not whole or not listed" for name in unlisted(folder)]
    if code == 0 and found != IMAGES:
        wrong.append(f"exit 0 with {found} images")
    text = said.read_text()
    begun = "/sdcli/" in text or found or records_in(folder)
    if code not in (0, CODES[name]) and (begun or code not in (1, -getattr(signal, name))):  # else Python itself starts
        wrong.append(f"exit {code} after {name}: {text[-200:]}")
    if "Traceback" in text and begun:
        wrong.append("a traceback")
    if code == CODES[name]:
        wrong += [f"{name} left" for name in left(folder)]
        for records in records_in(folder):
            end = runs.read(records).end
            if end is not None and end.get("exit_code") not in (code, 0):
                wrong.append(f"the journal ends with {end.get('exit_code')}, the command with {code}")
    return _resumed(lab, folder, moments, found, wrong)


# --- beside each other


def beside(lab: Lab, folder: Path) -> End:
    """Two images by each of eight runs with numbered names and of eight whose templates name the same files."""
    folder.mkdir()
    (folder / "1.png").write_bytes(b"somebody's")
    words = ["generate", "a cat", "-n", "2", *DRAW, "-o"]
    outputs = [str(folder), str(folder / "{seed}.png")] * 8
    processes = [lab.start([*words, output], lab.folder / "said") for output in outputs]
    codes = [forked.ended(process) for process in processes]
    wrong = [f"exit codes {codes}"] if any(codes) else []
    if (folder / "1.png").read_bytes() != b"somebody's":
        wrong.append("a foreign file was replaced")
    (folder / "1.png").unlink()
    wrong += [f"{name} is not whole or not listed" for name in unlisted(folder)]
    wrong += [f"{name} left" for name in left(folder)]
    seen = []
    for records in records_in(folder):
        done = runs.recover(runs.read(records)).done
        seen += [intent.file for intent in done.values()]
        if tuple(done[index].pixel_sha256 for index in sorted(done)) != lab.pixels[:2]:
            wrong.append(f"{records.name} lost an image")
    if len(set(seen)) != 32 or len(list(folder.glob("*.png"))) != 32:
        wrong.append(f"{len(set(seen))} names, {len(list(folder.glob('*.png')))} files")
    return End(len(set(seen)), 0, tuple(wrong))


# --- the table


def repeated(lab: Lab, times: int, seed: int, one: Callable[[Lab, Path, random.Random], End]) -> list[End]:
    """So many of them, each in its own folder, which goes when it has been looked at."""
    moments, ends = random.Random(seed), []
    for _ in range(times):
        with tempfile.TemporaryDirectory(dir=lab.folder) as made:
            ends.append(one(lab, Path(made) / "out", moments))
    return ends


def brief(kind: str, times: int, seed: int, folder: Path) -> list[End]:
    """A few of one kind, forked from a process that has done nothing else: what a thread of a library holds in one that
    has, a forked process never gets back."""
    found = forked.answer_of("runs", f"ends_of({kind!r}, {times}, {seed}, {str(folder)!r})")
    return [End(end["images"], end["resumed"], tuple(end["wrong"])) for end in found]


def ends_of(kind: str, times: int, seed: int, folder: str) -> list[dict[str, Any]]:
    kinds = {"killed": killed, "interrupted": interrupted, "beside": lambda lab, folder, _: beside(lab, folder)}
    return [asdict(end) for end in repeated(lab(Path(folder)), times, seed, kinds[kind])]


def row(what: str, ends: list[End]) -> Row:
    wrong = [flaw for end in ends for flaw in end.wrong]
    images, resumed = sum(end.images for end in ends), sum(end.resumed for end in ends)
    seen = f"{sum(not end.wrong for end in ends):,} of {len(ends):,}, {images:,} images found"
    seen += f", resumed {resumed:,} times" if resumed else ""
    return what, seen + (f"; first: {wrong[0]}" if wrong else ""), "all", not wrong


def main() -> list[Row]:
    with tempfile.TemporaryDirectory() as made, mock.patch.dict(os.environ, SDCLI_HOME=f"{made}/home"):
        (Path(made) / "forked").mkdir()
        (Path(made) / "real").mkdir()
        quick, real = lab(Path(made) / "forked"), lab(Path(made) / "real", forked.really_started)
        return [
            row("killed at a random moment", repeated(quick, 1000, 1, killed)),
            row("killed, real processes", repeated(real, 40, 2, killed)),
            row("interrupted at a random moment", repeated(quick, 340, 3, interrupted)),
            row("interrupted, real processes", repeated(real, 60, 4, interrupted)),
            row("sixteen runs in one folder", repeated(quick, 200, 5, lambda lab, folder, _: beside(lab, folder))),
        ]
