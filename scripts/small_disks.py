"""Real file systems that are full, read-only or taken out while sdcli draws into them: in memory, and seen by no other
process."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from scripts import forked
from sdcli.errors import BadFile
from sdcli.record import runs

IMAGES = 16
DRAWN = 5  # images that are saved when something happens to the folder
ROOMY = "64m"
FORMATS = ("png", "jpg")
SIZES = ("4k", "16k", "64k", "256k", "512k", "1m", "1536k", "2m")
FILES = (1, 2, 3, 4, 5, 6, 8, 12, 20)  # a file system may also have no room for one more file
_TRY = "  try: sdcli "


def why_none() -> str | None:
    """What keeps this process from mounting; None where it can."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("mount"):
        return "no unshare or mount here"
    with tempfile.TemporaryDirectory() as folder:
        words = [*apart(), "mount", "-t", "tmpfs", "none", folder]
        tried = subprocess.run(words, capture_output=True, text=True)
    return None if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


def apart() -> list[str]:
    """What mounts in the process that follows is seen by that one alone, and ends with it."""
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@dataclass
class Disk:
    """A file system in memory, at a folder; what a run drew there, and what was wrong."""

    folder: Path
    said: Path
    format: str = "png"
    wrong: list[str] = field(default_factory=list)

    def mount(self, *options: str, again: bool = False) -> None:
        options = (*(["remount"] if again else []), *options)
        _call("mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(self.folder))

    def drawing(self) -> list[str]:
        return [
            "generate", "a cat", "-n", str(IMAGES), "--engine", "fake", "--size", "256x256", "-s", "1", "--seed", "1",
            "-q", "--format", self.format, "-o", str(self.folder),
        ]  # fmt: skip

    def run(self, words: list[str], first: Callable[[], None] = lambda: None) -> tuple[int, str]:
        """Its exit code, and the last line it said."""
        self.said.write_bytes(b"")
        code = forked.ended(forked.started(words, self.said, first))
        text = self.said.read_text()
        if "Traceback" in text:
            self.wrong.append("a traceback")
        return code, (text.splitlines() or [""])[-1]

    def images(self) -> list[Path]:
        return sorted(self.folder.glob(f"*.{self.format}"))

    def journals(self) -> list[runs.RecordedRun]:
        found = []
        for records in self.folder.glob("runs/*"):
            try:
                found.append(runs.read(records))
            except BadFile:
                if (records / runs.JOURNAL).exists():
                    self.wrong.append("a journal without a line")
        return found

    def look(self) -> int:
        """How many images there are; each whole and listed, none missing that was noted as done, and nothing else."""
        found, listed, noted = self.images(), {}, set()
        for run in self.journals():
            listed |= {intent.file: intent.file_sha256 for intent in run.intents.values()}
            noted |= {run.intents[index].file for index in run.noted}
        for path in found:
            if listed.get(path.name) != hashlib.sha256(path.read_bytes()).hexdigest():
                self.wrong.append(f"{path.name} is not whole or not listed")
        self.wrong += [f"{name} is lost" for name in noted - {path.name for path in found}]
        self.wrong += [f"{path.name} left" for path in self.folder.rglob("*.part")]
        return len(found)

    def expect_7(self, code: int, last: str) -> None:
        if code != 7:
            self.wrong.append(f"exit {code}: {last}")
        if not last.startswith(_TRY + ("resume " if self.journals() else "")) and not last.startswith("  try: -o "):
            self.wrong.append(f"the last line is {last!r}")

    def go_on(self, last: str) -> None:
        """By that last line, pasted, where a run had begun; to the images of a run that nothing disturbed."""
        resuming = bool(self.journals())
        words = [*shlex.split(last.removeprefix(_TRY)), "--engine", "fake", "-q"] if resuming else self.drawing()
        code, last = self.run(words)
        if code:
            self.wrong.append(f"afterwards exit {code}: {last}")
        if self.look() != IMAGES or pixels(self) != undisturbed(self.format):
            self.wrong.append("other images than those of a run that nothing disturbed")


def pixels(disk: Disk) -> list[str]:
    """Of each image, by its index; decoded."""
    found = {}
    for run in disk.journals():
        for index, intent in runs.recover(run).done.items():
            with Image.open(disk.folder / intent.file) as image:
                found[index] = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
    return [found[index] for index in sorted(found)]


@functools.cache
def undisturbed(format: str) -> list[str]:
    with tempfile.TemporaryDirectory() as made:
        disk = Disk(Path(made) / "out", Path(made) / "said", format)
        code, last = disk.run(disk.drawing())
        assert code == 0, last
        return pixels(disk)


def _call(*words: str) -> None:
    subprocess.run(words, check=True)


# --- what happens to it


def full(disk: Disk, limit: str) -> int:
    """Once the run has looked how much room there is, others leave so much of it."""
    disk.mount(f"size={ROOMY}")
    code, last = disk.run(disk.drawing(), lambda: _before_its_journal(lambda: disk.mount(limit, again=True)))
    disk.expect_7(code, last)
    found = disk.look()
    disk.mount(f"size={ROOMY}", "nr_inodes=0", again=True)
    disk.go_on(last)
    return found


def too_small(disk: Disk, limit: str) -> int:
    """From the beginning: nothing is drawn."""
    disk.mount(limit)
    code, last = disk.run(disk.drawing())
    disk.expect_7(code, last)
    if any(disk.folder.iterdir()):
        disk.wrong.append("something was left")
    disk.mount(f"size={ROOMY}", again=True)
    disk.go_on(last)
    return 0


def read_only(disk: Disk, _: str) -> int:
    """Where a run was killed; then it can be written again."""
    disk.mount(f"size={ROOMY}")
    disk.run(disk.drawing(), lambda: _after_some(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    disk.mount("ro", again=True)
    (run,) = disk.journals()
    resuming = ["resume", str(run.destination.records), "--engine", "fake", "-q"]
    for words in (resuming, disk.drawing()):
        code, last = disk.run(words)
        if code != 7 or not last.startswith("  try: "):
            disk.wrong.append(f"{words[0]} ended with {code}: {last}")
    found = disk.look()
    disk.mount("rw", again=True)
    disk.go_on(f"{_TRY}{shlex.join(resuming[:2])}")
    return found


def taken_out(disk: Disk, _: str) -> int:
    """While it is drawn into; then it is put in again."""
    disk.mount(f"size={ROOMY}")
    elsewhere = disk.folder.with_name("elsewhere")
    elsewhere.mkdir()
    _call("mount", "--bind", str(disk.folder), str(elsewhere))
    code, last = disk.run(disk.drawing(), lambda: _after_some(lambda: _call("umount", "--lazy", str(disk.folder))))
    if any(disk.folder.iterdir()):
        disk.wrong.append("something was written beneath")
    _call("mount", "--move", str(elsewhere), str(disk.folder))
    disk.expect_7(code, last)
    found = disk.look()
    disk.go_on(last)
    return found


def removed(disk: Disk, _: str) -> int:
    """While it is drawn into."""
    code, last = disk.run(disk.drawing(), lambda: _after_some(lambda: shutil.rmtree(disk.folder)))
    if code != 7 or disk.folder.exists():
        disk.wrong.append(f"exit {code}: {last}")
    disk.go_on(last)
    return 0


def _before_its_journal(happen: Callable[[], None]) -> None:
    from sdcli.cli import drawing

    real = drawing._events

    def events(*given: object) -> Iterator[object]:
        happen()
        yield from real(*given)  # type: ignore[arg-type]

    drawing._events = events  # type: ignore[assignment]


def _after_some(happen: Callable[[], None]) -> None:
    from sdcli.draw import fake

    real, calls = fake.Run._decode, []

    def decode(self: fake.Run, *given: object) -> Iterator[object]:
        calls.append(given)
        if len(calls) == DRAWN + 1:
            happen()
        yield from real(self, *given)  # type: ignore[arg-type]

    fake.Run._decode = decode  # type: ignore[assignment, method-assign]


# --- all of it


def cases(sizes: tuple[str, ...] = SIZES, files: tuple[int, ...] = FILES) -> Iterator[tuple[str, str, str]]:
    """What happens, with which limit, to images of which format."""
    for format in FORMATS:
        for size in sizes:
            yield "full", f"size={size}", format
        for number in files:
            yield "full", f"nr_inodes={number}", format
    yield from (("too_small", f"size={size}", "png") for size in sizes)
    yield from ((name, "", format) for name in ("read_only", "taken_out", "removed") for format in FORMATS)


def ends(chosen: list[tuple[str, str, str]]) -> list[tuple[str, str, int, list[str]]]:
    """Of each: what happened, to what, how many images were there, what was wrong."""
    from sdcli.draw import fake

    fake._gradient = lambda seed, width, height: random.Random(seed).randbytes(width * height * 3)  # fills a disk
    happenings = {each.__name__: each for each in (full, too_small, read_only, taken_out, removed)}
    found = []
    with tempfile.TemporaryDirectory() as made:
        os.environ["SDCLI_HOME"] = f"{made}/home"
        forked.warmed(Path(made))
        for number, (name, limit, format) in enumerate(chosen):
            folder = Path(made) / str(number)
            (folder / "out").mkdir(parents=True)
            disk = Disk(folder / "out", Path(made) / "said", format)
            images = happenings[name](disk, limit)
            found.append((name, f"{limit} {format}".strip(), images, disk.wrong))
            subprocess.run(["umount", "--lazy", str(disk.folder)], capture_output=True)
    return found
