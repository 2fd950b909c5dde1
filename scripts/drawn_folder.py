"""A folder that the command draws into, in a process of its own, and what must hold of it however that ended."""

from __future__ import annotations

import functools
import hashlib
import random
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from scripts import forked
from sdcli.errors import BadFile
from sdcli.record import runs

TRY = "  try: sdcli "


@dataclass
class DrawnFolder:
    """What was drawn there; `said`: a file for what the command says; `wrong`: what did not hold."""

    folder: Path
    said: Path
    images: int
    format: str = "png"
    size: str = "64x64"
    wrong: list[str] = field(default_factory=list)

    def drawing(self) -> list[str]:
        return [
            "generate", "a cat", "-n", str(self.images), "--engine", "fake", "--size", self.size, "-s", "1", "--seed",
            "1", "-q", "--format", self.format, "-o", str(self.folder),
        ]  # fmt: skip

    def run(self, words: list[str], first: Callable[[], None] = lambda: None) -> tuple[int, str]:
        """Its exit code, and the last line it said."""
        self.said.write_bytes(b"")
        return self.ended(forked.started(words, self.said, first))

    def ended(self, process: int) -> tuple[int, str]:
        code, text = forked.ended(process), self.said.read_text()
        if "Traceback" in text:
            self.wrong.append("a traceback")
        return code, (text.splitlines() or [""])[-1]

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*.{self.format}"))

    def journals(self) -> list[runs.RecordedRun]:
        found = []
        for records in self.folder.glob("runs/*"):
            try:
                found.append(runs.read(records))
            except BadFile:
                continue
        return found

    def look(self, parts: bool = False) -> int:
        """How many images there are: each whole and listed, and none missing that was noted as done. `parts`: temporary
        files could not be removed."""
        found, listed, noted = self.files(), {}, set()
        for run in self.journals():
            listed |= {intent.file: intent.file_sha256 for intent in run.intents.values()}
            noted |= {run.intents[index].file for index in run.noted}
        for path in found:
            if listed.get(path.name) != hashlib.sha256(path.read_bytes()).hexdigest():
                self.wrong.append(f"{path.name} is not whole or not listed")
        self.wrong += [f"{name} is lost" for name in noted - {path.name for path in found}]
        self.wrong += [f"{path.name} left" for path in self.folder.rglob("*.part") if not parts]
        return len(found)

    def is_complete(self) -> bool:
        return len(self.files()) == self.images and pixels(self) == undisturbed(self.images, self.format, self.size)

    def expect_7(self, code: int, last: str) -> None:
        """With the line that draws the rest as the last one, where a run had begun."""
        begun = bool(self.journals())
        if code != 7:
            self.wrong.append(f"exit {code}: {last}")
        elif not last.startswith(TRY + "resume " if begun else "  try: "):
            self.wrong.append(f"the last line is {last!r}")

    def go_on(self, last: str, parts: bool = False) -> None:
        """By that last line, pasted, where a run had begun; to the images of a run that nothing disturbed."""
        begun = bool(self.journals())
        words = [*shlex.split(last.removeprefix(TRY)), "--engine", "fake", "-q"] if begun else self.drawing()
        code, _ = self.run(words)
        if code:
            self.wrong.append(f"afterwards exit {code}: {self.said.read_text()[-300:]}")
        self.look(parts)
        if not self.is_complete():
            self.wrong.append("other images than those of a run that nothing disturbed")


def pixels(drawn: DrawnFolder) -> list[str]:
    """Of each image, by its index; decoded."""
    found = {}
    for run in drawn.journals():
        for index, intent in runs.recover(run).done.items():
            with Image.open(drawn.folder / intent.file) as image:
                found[index] = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
    return [found[index] for index in sorted(found)]


@functools.cache
def undisturbed(images: int, format: str, size: str) -> list[str]:
    with tempfile.TemporaryDirectory() as made:
        drawn = DrawnFolder(Path(made) / "out", Path(made) / "said", images, format, size)
        code, last = drawn.run(drawn.drawing())
        assert code == 0, last
        return pixels(drawn)


def large_images() -> None:
    """In this process and its children the fake engine draws what no format makes small."""
    from sdcli.draw import fake

    fake._gradient = lambda seed, width, height: random.Random(seed).randbytes(width * height * 3)
