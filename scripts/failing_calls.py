"""Every system call that a run makes on its folder fails, as the kernel itself would answer: strace puts the answer in
its place."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts import forked
from scripts.drawn_folder import DrawnFolder

IMAGES = 2
RUN = "20261103-142501-3f2a"
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EMFILE")
FOREIGN = "keep.txt"


@dataclass(frozen=True)
class Fault:
    """The `nth` call of its kind fails, or every one from there on."""

    call: str
    nth: int
    error: str
    lasting: bool


def why_none() -> str | None:
    """What keeps strace from following a process; None where it can."""
    if not shutil.which("strace"):
        return "no strace here"
    waiting = subprocess.Popen(["sleep", "0.2"])
    words = ["strace", "-o", os.devnull, "-p", str(waiting.pid)]
    tried = subprocess.run(words, capture_output=True, text=True)
    waiting.wait()
    return None if tried.returncode == 0 else (tried.stderr.strip() or f"exit {tried.returncode}").splitlines()[-1]


def traced(drawn: DrawnFolder, log: Path, *more: str) -> tuple[int, str]:
    """How a run ended that strace has followed from its first step."""
    drawn.said.write_bytes(b"")
    process = forked.started(drawn.drawing(), drawn.said, _followed)
    words = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-p", str(process), *more]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as strace:
        ended = drawn.ended(process)
    if strace.returncode:
        drawn.wrong.append(f"strace ended with {strace.returncode}")
    return ended


def _followed() -> None:
    """Under names that are the same in each run, and not before strace is there."""
    from sdcli.record import names

    names.new_run = lambda shard: RUN
    os.urandom = bytes  # type: ignore[assignment]
    until = time.monotonic() + 60
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if time.monotonic() > until:
            raise TimeoutError("strace did not come")
        time.sleep(0.001)


def drawn_in(folder: Path) -> DrawnFolder:
    """With a file of somebody's in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FOREIGN).write_bytes(b"somebody's")
    return DrawnFolder(folder, folder.with_name("said"), IMAGES)


def watched(root: Path) -> tuple[list[str], Counter[str]]:
    """The paths in the folder that a run touches, and how often each call is made on one of them."""
    drawn, log = drawn_in(root / "out"), root / "log"
    assert traced(drawn, log, "-e", "trace=%file,%desc")[0] == 0
    paths = re.findall(rf'[<"]({re.escape(str(drawn.folder))}[^">]*)[">]', log.read_text())
    chosen = [word for path in sorted(set(paths)) for word in ("-P", path)]
    shutil.rmtree(drawn.folder)
    drawn = drawn_in(root / "out")
    assert traced(drawn, log, *chosen)[0] == 0
    shutil.rmtree(drawn.folder)
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    return chosen, calls


def faults(calls: Counter[str], errors: Iterable[str], lastings: Iterable[bool]) -> Iterator[Fault]:
    for error, lasting in itertools.product(errors, lastings):
        yield from (Fault(call, nth, error, lasting) for call in sorted(calls) for nth in range(1, calls[call] + 1))


def failed(root: Path, chosen: list[str], fault: Fault) -> tuple[int, list[str]]:
    """How the run ended, and what was wrong then and after it was gone on with."""
    drawn = drawn_in(root / "out")
    when = f"{fault.nth}{'+' if fault.lasting else ''}"
    inject = ["-e", f"inject={fault.call}:error={fault.error}:when={when}"]
    if fault.lasting and fault.call in ("write", "fsync"):  # nor can half a line be taken back
        inject += ["-e", f"inject=ftruncate:error={fault.error}"]
    code, last = traced(drawn, root / "log", *chosen, *inject)
    if "(INJECTED)" not in (root / "log").read_text():
        drawn.wrong.append("the call was not made")
    unremoved = fault.call == "unlink"
    drawn.look(parts=unremoved)
    if code != 0:
        drawn.expect_7(code, last)
        drawn.go_on(last, parts=unremoved and not drawn.journals())  # of a run that never began: it might be alive
    elif not drawn.is_complete():
        drawn.wrong.append(f"exit 0 with {len(drawn.files())} images")
    if (drawn.folder / FOREIGN).read_bytes() != b"somebody's":
        drawn.wrong.append("a foreign file changed")
    shutil.rmtree(drawn.folder)
    return code, drawn.wrong


def ends(
    errors: Iterable[str] = ERRORS, lastings: Iterable[bool] = (False, True), only: Iterable[str] = ()
) -> list[tuple[str, int, str, bool, int, list[str]]]:
    """Of each fault: itself, the exit code, what was wrong."""
    found = []
    with tempfile.TemporaryDirectory() as made:
        root = Path(made).resolve()
        os.environ["SDCLI_HOME"] = f"{root}/home"
        forked.warmed(root)
        chosen, calls = watched(root)
        some = Counter({call: number for call, number in calls.items() if call in only}) if only else calls
        for fault in faults(some, errors, lastings):
            code, wrong = failed(root, chosen, fault)
            found.append((fault.call, fault.nth, fault.error, fault.lasting, code, wrong))
    return found
