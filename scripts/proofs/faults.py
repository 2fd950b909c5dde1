"""Every file call of a run fails, or the process dies at it: what is finished stays, and resuming draws the rest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import failing_calls, forked, small_disks  # noqa: E402
from sdcli.draw import fake  # noqa: E402
from sdcli.errors import BadFile, CannotWrite  # noqa: E402
from sdcli.events import Decoded, KeptStep, Planned, Step  # noqa: E402
from sdcli.files import WITHOUT_LINKS, Files  # noqa: E402
from sdcli.plan.plan import Plan  # noqa: E402
from sdcli.record import report, runs  # noqa: E402
from sdcli.record.names import Destination  # noqa: E402
from sdcli.record.store import store  # noqa: E402
from tests.record.record_samples import destination, plan  # noqa: E402

NAME = "faults"
CLAIM = (
    "Every file call of a run of three images fails, each time it occurs, once and from then on; or the process is "
    "gone before it, or within a write. So does every system call that the command makes on its folder, answered by "
    "strace; and real disks fill, are read-only or are taken out. Finished images stay as they are, nothing is half "
    "there, the run can be resumed to the same pixels, by the last line it said."
)

Row = tuple[str, str, str, bool | None]

ERRORS = failing_calls.ERRORS
KINDS = tuple(name for name, value in vars(Files).items() if callable(value))
# A failure of these loses nothing: a file that is written and synced, a hint to the system, one way of several.
MAY_PASS = {"close", "remove", "truncate"}
OLD, FOREIGN = b"an image from before", "keep.txt"


class Watched(Files):
    """Hears of each call before it is made. Nothing is synced: the machine stays on."""

    def hear(self, kind: str, given: tuple[Any, ...]) -> None:
        raise NotImplementedError


def _heard(kind: str) -> Callable[..., Any]:
    real = getattr(Files, kind)

    def call(self: Watched, *given: Any) -> Any:
        self.hear(kind, given)
        return None if kind in ("sync", "sync_folder") else real(self, *given)

    return call


for _kind in KINDS:
    setattr(Watched, _kind, _heard(_kind))


class Failing(Watched):
    """The `nth` call of a kind fails (none at 0), and every later one of that kind if `lasting`."""

    def __init__(self, kind: str = "", nth: int = 0, number: int = 0, lasting: bool = False) -> None:
        self.kind, self.nth, self.number, self.lasting = kind, nth, number, lasting
        self.counted = dict.fromkeys(KINDS, 0)

    def hear(self, kind: str, given: tuple[Any, ...]) -> None:
        self.counted[kind] += 1
        count = self.counted[kind]
        if kind != self.kind or not (count == self.nth or (self.lasting and count > self.nth > 0)):
            return
        if kind == "close":  # such a file is closed all the same
            os.close(given[0])
        if kind == "write":  # a full disk takes some of it first
            os.write(given[0], bytes(given[1][: len(given[1]) // 2]))
        raise OSError(self.number, os.strerror(self.number))


class Dying(Watched):
    """The process is gone before its `nth` call; with `half`, within it if it writes."""

    def __init__(self, nth: int, half: bool) -> None:
        self.left, self.half = nth, half

    def hear(self, kind: str, given: tuple[Any, ...]) -> None:
        self.left -= 1
        if self.left:
            return
        if kind == "write" and self.half:
            os.write(given[0], bytes(given[1][: len(given[1]) // 2]))
        os._exit(DIED)


DIED, FAILED = 9, 8


@dataclass(frozen=True)
class Way:
    """A way of writing images."""

    pattern: str = ""
    overwrite: bool = False
    links: bool = True
    resumed: bool = False
    steps: bool = False  # kept

    def plan(self, of: Plan) -> Plan:
        return replace(of, request=replace(of.request, keep_steps=True)) if self.steps else of

    def destination(self, folder: Path) -> Destination:
        kind = "template" if self.pattern else "numbered"
        return destination(folder, kind=kind, pattern=self.pattern, overwrite=self.overwrite)

    def files(self, files: Files) -> Files:
        """With the links of a file system that has none, where that is meant."""
        if not self.links:
            files.link = _no_links  # type: ignore[method-assign]
        return files


def _no_links(source: Path, target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


WAYS = {
    "numbered": Way(),
    "a template": Way(pattern="{model}/{seed}.png"),
    "overwriting": Way(pattern="{seed}.png", overwrite=True),
    "without links": Way(links=False),
    "resumed": Way(resumed=True),
    "keeping steps": Way(steps=True),
}


def events(of: Plan, indices: Iterable[int]) -> Iterator[Any]:
    yield Planned(plan=of)
    for event in fake.run(of, [(index, (of.jobs[index],)) for index in indices]):
        yield event
        if isinstance(event, Step) and of.request.keep_steps:
            yield KeptStep(batch=event.batch, step=event.step, state=b"latents")


def drawn(way: Way, of: Plan, folder: Path, files: Files) -> CannotWrite | None:
    """A whole run, up to its report, as `sdcli generate` does it, or `sdcli resume`; what it ended with."""
    of, where, folding = way.plan(of), way.destination(folder), report.Folding(started="", run="", clock=lambda: 0.0)
    error: CannotWrite | None = None
    try:
        if way.resumed:
            recovered = runs.recover(runs.read(where.records), files=files)
            journal = runs.reopen(recovered.run, {}, files=files)
            rest = events(of, recovered.missing)
            stream = store(rest, where, journal=journal, earlier=recovered.done, files=files)
        else:
            stream = store(events(of, range(len(of.jobs))), where, files=files)
        for event in stream:
            folding(event)
    except CannotWrite as failed:
        error = failed
    if where.records.exists():
        try:
            report.write(folding.report(error), where.records / runs.REPORT, files)
        except CannotWrite as failed:
            error = error or failed
    return error


def prepare(way: Way, of: Plan, folder: Path) -> None:
    """What the run finds: a file of somebody's, an image to replace, a run that was interrupted after its first."""
    folder.mkdir(parents=True)
    (folder / FOREIGN).write_bytes(OLD)
    if way.overwrite:
        (folder / f"{of.jobs[1].seed}.png").write_bytes(OLD)
    if way.resumed:
        stream = store(events(of, range(len(of.jobs))), way.destination(folder), files=Failing())
        for event in stream:
            if isinstance(event, Decoded):
                break
        stream.close()  # type: ignore[attr-defined]


def images(folder: Path) -> dict[str, str]:
    """The files under images' names, other than what was there before, with their hashes."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if data != OLD}


def flaws(way: Way, of: Plan, folder: Path, *, died: bool, parts: bool) -> Iterator[str]:
    """What is wrong after a failure or a death; `parts`: temporary files may be left until the run is resumed."""
    where = way.destination(folder)
    if (folder / FOREIGN).read_bytes() != OLD:
        yield "a foreign file changed"
    if not parts and list(folder.rglob("*.part")):
        yield "a temporary file left"
    try:
        recovered = runs.recover(runs.read(where.records))
    except BadFile:
        if images(folder):
            yield "images without a list"
        if (where.records / runs.JOURNAL).exists() and not died:
            yield "a list without a line"
        return
    if images(folder) != {intent.file: intent.file_sha256 for intent in recovered.done.values()}:
        yield "an image that is not whole, or not listed"
    with contextlib.suppress(FileNotFoundError):
        report.from_json(json.loads((where.records / runs.REPORT).read_bytes()))
    yield from _resumed(way, of, folder)


def _resumed(way: Way, of: Plan, folder: Path) -> Iterator[str]:
    records = way.destination(folder).records
    error = drawn(replace(way, resumed=True), of, folder, way.files(Failing()))
    if error is not None:
        yield f"not resumed: {error.message}"
        return
    whole = runs.recover(runs.read(records))
    if [whole.done[job.index].pixel_sha256 for job in of.jobs if job.index in whole.done] != pixels(of):
        yield "other pixels than those of an uninterrupted run"
    if len(images(folder)) != len(of.jobs) or whole.run.end is None or whole.run.end["exit_code"] != 0:
        yield "more or fewer images than were asked for"
    if list(folder.rglob("*.part")) or list(folder.rglob("*.step.safetensors")):
        yield "a temporary file or a kept step left by a resumed run"


def pixels(of: Plan) -> list[str]:
    return [hashlib.sha256(event.pixels).hexdigest() for event in fake.run(of) if isinstance(event, Decoded)]


# --- every call fails


@dataclass(frozen=True)
class Fault:
    way: str
    kind: str
    nth: int
    error: str
    lasting: bool


def counted(way: Way, of: Plan, folder: Path) -> dict[str, int]:
    """How often each call occurs in a run where all goes well."""
    files = Failing()
    prepare(way, of, folder)
    assert drawn(way, of, folder, way.files(files)) is None
    return files.counted


def faults(root: Path, of: Plan, errors: Iterable[str] = ERRORS, ways: Iterable[str] = WAYS) -> Iterator[Fault]:
    for name in ways:
        calls = counted(WAYS[name], of, root / f"counted {name}")
        for error, lasting in itertools.product(errors, (False, True)):
            yield from (Fault(name, kind, nth, error, lasting) for kind in calls for nth in range(1, calls[kind] + 1))


def failed(fault: Fault, of: Plan, folder: Path) -> list[str]:
    """What was wrong with a run in which this call failed."""
    way, number = WAYS[fault.way], getattr(errno, fault.error)
    prepare(way, of, folder)
    error = drawn(way, of, folder, way.files(Failing(fault.kind, fault.nth, number, fault.lasting)))
    wrong = []
    harmless = fault.kind in MAY_PASS or way.steps  # a step that cannot be kept is only told
    if error is None and not harmless and not (fault.kind == "link" and number in WITHOUT_LINKS):
        wrong.append("no error")
    if error is not None and (error.code != 7 or not error.message or not error.hint):
        wrong.append(f"{error!r}")
    return [*wrong, *flaws(way, of, folder, died=False, parts=fault.kind == "remove")]


# --- the process dies at every call


def dies(way: Way, of: Plan, folder: Path, nth: int, half: bool) -> list[str] | None:
    """What was wrong after a death at that call; None if the run ended before it."""
    prepare(way, of, folder)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if drawn(way, of, folder, way.files(Dying(nth, half))) is None else FAILED)
        finally:
            os._exit(FAILED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return None
    return [*([] if code == DIED else [f"ended with {code}"]), *flaws(way, of, folder, died=True, parts=True)]


def deaths(way: Way, of: Plan, root: Path, halves: Iterable[bool]) -> Iterator[list[str]]:
    """What was wrong after each."""
    for half in halves:
        for nth in itertools.count(1):
            wrong = dies(way, of, root / f"{half} {nth}", nth, half)
            if wrong is None:
                break
            yield wrong


def main() -> list[Row]:
    calls, disks = _asked_for_calls(), _asked_for_disks()  # meanwhile
    of, rows = plan(images=3), []
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        every = list(faults(root, of))
        wrong = {fault: failed(fault, of, root / str(number)) for number, fault in enumerate(every)}
        for error in ERRORS:
            rows.append(_row(f"{error}", {fault: flaw for fault, flaw in wrong.items() if fault.error == error}))
        kinds = {kind for kind in KINDS if any(fault.kind == kind for fault in every)}
        rows.append(("calls that fail", ", ".join(kind for kind in KINDS if kind in kinds), "", len(kinds) >= 10))
        for name, way in WAYS.items():
            ended = dict(enumerate(deaths(way, of, root / f"deaths {name}", (False, True))))
            rows.append(_row(f"killed at each call, {name}", ended))
    return [*rows, *_system_calls(calls), *_small_disks(disks)]


# --- the command itself: answered by strace in the kernel's place, and on file systems of its own


DISKS = {
    "full": "a full disk, 16 images",
    "too_small": "a disk too small",
    "read_only": "a disk made read-only",
    "taken_out": "a disk taken out while drawing",
    "removed": "a folder removed while drawing",
}
Asked = subprocess.Popen[bytes]


def _asked_for_calls() -> dict[str, Asked] | str:
    """By error; or why not."""
    return failing_calls.why_none() or {
        error: forked.asked("faults", f"failing_calls.ends(({error!r},))") for error in ERRORS
    }


def _asked_for_disks() -> Asked | str:
    call = f"small_disks.ends({list(small_disks.cases())!r})"
    return small_disks.why_none() or forked.asked("faults", call, small_disks.apart())


def _system_calls(asked: dict[str, Asked] | str) -> list[Row]:
    if isinstance(asked, str):
        return [(f"{error} from the kernel", f"not run: {asked}", "all", None) for error in ERRORS]
    rows, codes, calls = [], Counter[int](), set()
    for error, process in asked.items():
        found = forked.answered(process)
        ends = {f"{call} {nth}{'+' * lasting}": wrong for call, nth, _, lasting, _, wrong in found}
        rows.append(_row(f"{error} from the kernel", ends))
        codes += Counter(code for *_, code, _ in found)
        calls |= {call for call, *_ in found}
    seen = ", ".join(f"{code}: {number:,}" for code, number in sorted(codes.items()))
    return [*rows, (f"exit codes then ({', '.join(sorted(calls))})", seen, "0 and 7", set(codes) <= {0, 7})]


def _small_disks(asked: Asked | str) -> list[Row]:
    if isinstance(asked, str):
        return [(what, f"not run: {asked}", "all", None) for what in DISKS.values()]
    found = forked.answered(asked)
    ends = {name: {case: wrong for one, case, _, wrong in found if one == name} for name in DISKS}
    return [_row(what, ends[name]) for name, what in DISKS.items()]


def _row(what: str, wrong: dict[Any, list[str]]) -> Row:
    bad = {case: flaw for case, flaw in wrong.items() if flaw}
    first = next((f"; first: {case}: {', '.join(flaw)}" for case, flaw in bad.items()), "")
    return what, f"{len(wrong) - len(bad):,} of {len(wrong):,} as claimed{first}", "all", not bad
