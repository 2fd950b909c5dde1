"""Real file systems that are full, read-only or taken out while sdcli draws into them: in memory, and seen by no other
process."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts import forked
from scripts.drawn_folder import TRY, DrawnFolder, large_images

IMAGES = 16
DRAWN = 5  # images that are saved when something happens to the folder
ROOMY = "64m"
FORMATS = ("png", "jpg")
SIZES = ("4k", "16k", "64k", "256k", "512k", "1m", "1536k", "2m")
FILES = (1, 2, 3, 4, 5, 6, 8, 12, 20)  # a file system may also have no room for one more file


def why_none() -> str | None:
    """What keeps this process from mounting; None where it can."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("mount"):
        return "no unshare or mount here"
    with tempfile.TemporaryDirectory() as folder:
        words = [*apart(), "mount", "-t", "tmpfs", "none", folder]
        tried = subprocess.run(words, capture_output=True, text=True)
    return None if tried.returncode == 0 else (tried.stderr.strip() or f"exit {tried.returncode}").splitlines()[-1]


def apart() -> list[str]:
    """What mounts in the process that follows is seen by that one alone, and ends with it."""
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


class Disk(DrawnFolder):
    """A file system in memory, at a folder."""

    def mount(self, *options: str, again: bool = False) -> None:
        options = (*(["remount"] if again else []), *options)
        _call("mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(self.folder))


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
    disk.go_on(f"{TRY}{shlex.join(resuming[:2])}")
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
    large_images()
    happenings = {each.__name__: each for each in (full, too_small, read_only, taken_out, removed)}
    found = []
    with tempfile.TemporaryDirectory() as made:
        os.environ["SDCLI_HOME"] = f"{made}/home"
        forked.warmed(Path(made))
        for number, (name, limit, format) in enumerate(chosen):
            folder = Path(made) / str(number)
            (folder / "out").mkdir(parents=True)
            disk = Disk(folder / "out", Path(made) / "said", IMAGES, format, "256x256")
            images = happenings[name](disk, limit)
            found.append((name, f"{limit} {format}".strip(), images, disk.wrong))
            subprocess.run(["umount", "--lazy", str(disk.folder)], capture_output=True)
    return found
