"""Several workers, several shards, long lists: every image exactly once, and what it costs beside drawing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from scripts import forked, random_plans  # noqa: E402
from sdcli import __version__, events, schema  # noqa: E402
from sdcli.asking import sharing  # noqa: E402
from sdcli.draw import fake  # noqa: E402
from sdcli.errors import OutOfMemory  # noqa: E402
from sdcli.files import Unsynced  # noqa: E402
from sdcli.machine import processor  # noqa: E402
from sdcli.plan.batches import Batch, missing  # noqa: E402
from sdcli.plan.plan import Plan  # noqa: E402
from sdcli.plan.processes import divisions  # noqa: E402
from sdcli.record import found_runs, merging, runs  # noqa: E402
from sdcli.record import report as reports  # noqa: E402
from sdcli.record.names import Destination  # noqa: E402
from sdcli.record.report import Folding  # noqa: E402
from sdcli.record.sinks.progress import RunProgress  # noqa: E402
from sdcli.record.store import store  # noqa: E402
from sdcli.request import prompt_files  # noqa: E402
from sdcli.request.request import Job, Request, Shard  # noqa: E402
from sdcli.scale.pool import Pool  # noqa: E402
from tests.record.record_samples import RUN, destination, job, plan  # noqa: E402

NAME = "scale"
CLAIM = (
    "Workers are killed 300 times while they draw 2,000 images on the fake engine, and 20 runs of two workers are "
    "killed themselves and resumed: each image is there exactly once, whole, with its own pixels, and no process is "
    "left. With 20 ms an image up to 64 workers are kept busy. Random lists on random sets of devices of unlike size "
    "and make are drawn as by one, each worker within its memory, and devices of one kind draw equal pixels. A list of "
    "a million prompts is shared out so that every job is in exactly one shard, without the list in memory, and a run "
    "of a million takes less memory than 300 MB."
)

IMAGES, KILLS, RUNS, PLANS = 2_000, 300, 20, 300
JOB = 0.02  # seconds of an image
AS_GOOD = 0.9  # what is chosen, beside the best there is
BUSY = 0.95  # of what so many workers could draw at most
MILLION = 1_000_000
MOST_MICROSECONDS, MOST_BYTES = 50.0, 300e6
RECORDS, MOST_OF_RESUME, MOST_OF_MERGE = 40_000, 2_000, 8_000  # images, and bytes for each
LINKS = 10_000  # names of one file; most file systems have room for more

Row = tuple[str, str, str, bool | None]


# --- deaths


def planned(images: int, workers: int) -> Plan:
    of = replace(plan(images=images), version=__version__)
    return replace(of, workers=tuple(of.worker(f"worker {number}") for number in range(workers)))


def pool(seconds: float = JOB) -> Pool:
    command = (sys.executable, "-P", "-m", "scripts.fragile_worker", f"--seconds={seconds}")
    return Pool("fake", lambda own: command)


def killed(images: int = IMAGES, kills: int = KILLS, workers: int = 4, seed: int = 1) -> Row:
    """A random worker dies each time that some images have come: how many, is chance. A batch over which three died is
    given up, and so is a run whose workers all died five times without an image between: as a user would, it is resumed
    then, until every image is there."""
    of, chance = planned(images, workers), random.Random(seed)
    at = sorted(chance.sample(range(1, images - 20), kills))
    with tempfile.TemporaryDirectory() as made:
        to = destination(Path(made))
        tries = [_drawn(store(_stream(of), to), at, 0, chance)]
        wrong: list[str] = []
        while before := _unfinished(to):
            there = len(before.done)
            rest = _stream(of, missing(of.numbered(), before.done))
            again = store(rest, to, journal=runs.reopen(before.run, {}), earlier=before.done)
            tries.append(_drawn(again, at, there, chance))
            if not tries[-1].pixels and not tries[-1].deaths:
                wrong.append("no image came of a run that nobody ended")
                break
        pixels: dict[int, bytes] = {}
        for one in tries:
            wrong += ["an image came twice"] if pixels.keys() & one.pixels.keys() else []
            pixels |= one.pixels
        expected = {event.index: event.pixels for event in fake.run(of) if isinstance(event, events.Decoded)}
        wrong += ["other pixels"] if pixels != expected else []
        done = runs.recover(runs.read(to.records)).done
        wrong += [f"{len(done)} are whole on the disk"] if len(done) != images else []
        wrong += [f"{path.name} left" for path in Path(made).rglob("*.part")]
    wrong += [f"{len(children())} processes left"] if children() else []
    deaths, resumed = sum(one.deaths for one in tries), len(tries) - 1
    seen = f"{len(pixels):,} of {images:,} images, {deaths} deaths, resumed {resumed} times" + _first(wrong)
    return f"{kills} kills of {workers} workers", seen, "each image once", not wrong and deaths == kills


def _unfinished(to: Destination) -> runs.Recovered | None:
    before = runs.recover(runs.read(to.records))
    return before if before.missing else None


def _first(wrong: Sequence[str]) -> str:
    return f"; first: {wrong[0]}" if wrong else ""


def _stream(of: Plan, batches: Iterable[Batch] | None = None) -> Iterator[events.Event]:
    yield events.Planned(plan=of)
    with pool() as drawing:
        yield from drawing.run(of, batches)


class Try(NamedTuple):
    pixels: Mapping[int, bytes]
    deaths: int


def _drawn(stream: Iterator[events.Event], at: list[int], there: int, chance: random.Random) -> Try:
    """Until it ends, by itself or because every worker has died too often. `there`: images of earlier tries."""
    pixels: dict[int, bytes] = {}
    deaths = 0
    with contextlib.suppress(OutOfMemory):  # as a process that was killed is told
        for event in stream:
            if isinstance(event, events.Decoded):
                assert event.index not in pixels
                pixels[event.index] = event.pixels
                while at and there + len(pixels) >= at[0] and _kill_one(chance):
                    at.pop(0)
                    deaths += 1
    return Try(pixels, deaths)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _kill_one(chance: random.Random) -> bool:
    """False where none is there to be killed just now."""
    there = children()
    if there:
        chance.choice(there).kill()
    return bool(there)


def drivers(times: int = RUNS, images: int = 60, seed: int = 2) -> Row:
    chance, wrong, resumed = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as made, mock.patch.dict(os.environ, SDCLI_HOME=f"{made}/home"):
        for number in range(times):
            out = Path(made) / str(number)
            words = ["generate", "a cat", "--engine", "fake", "--size", "64x64", "-s", "2", "--seed", f"1..{images}"]
            process = _started([*words, "-q", "--devices", "cpu:2x1", "-o", str(out)])
            while not list(out.glob("*.png")) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.3))
            workers = psutil.Process(process.pid).children() if process.poll() is None else []
            process.kill()
            process.wait()
            wrong += ["a worker outlived its run"] if psutil.wait_procs(workers, timeout=10)[1] else []
            (records,) = found_runs.found([out])
            if runs.recover(runs.read(records)).missing:
                resumed += 1
                code = _started(["resume", str(records), "--engine", "fake", "-q"]).wait()
                wrong += [f"resume ended with {code}"] if code else []
            done = runs.recover(runs.read(records)).done
            files = list(out.glob("*.png"))
            wrong += [f"{len(done)} done, {len(files)} files"] if {len(done), len(files)} != {images} else []
    seen = f"{times} runs, {resumed} resumed" + _first(wrong)
    return "runs of two workers, killed and resumed", seen, "each image once, no process left", not wrong


def _started(words: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-P", "-m", "sdcli", *words], env=environment, **quiet)  # type: ignore[call-overload, no-any-return]


# --- how busy


def alone(images: int = 100) -> float:
    """Images a second of such an engine by itself, in this process: what a worker could draw at most, here and now."""
    list(fake.run(planned(1, 0)))
    began = time.perf_counter()
    for event in fake.run(planned(images, 0)):
        if isinstance(event, events.Decoded):
            time.sleep(JOB)
    return images / (time.perf_counter() - began)


def busy(workers: int, seconds: float = 5.0) -> Row:
    """Without a store, which writes one image after the other. The workers have started before."""
    most = alone() * workers
    count = max(workers * 4, int(workers / JOB * seconds))
    with pool() as drawing:
        for _ in drawing.run(planned(workers * 8, workers)):
            pass
        began, drawn = time.perf_counter(), 0
        for event in drawing.run(planned(count, workers)):
            drawn += isinstance(event, events.Decoded)
        took = time.perf_counter() - began
    share = drawn / took / most
    said = f"{drawn / took:,.0f} images/s, {share:.0%} of as many engines alone"
    return f"{workers} workers, {JOB * 1000:.0f} ms an image", said, f"{BUSY:.0%}", share >= BUSY


# --- plans


def random_sets(count: int = PLANS, seed: int = 4) -> Row:
    """Each batch in exactly one worker, no plan beyond its memory, alike devices alike, the pixels of one worker."""
    found = list(random_plans.checked(count, seed))
    wrong = [one for each in found for one in each.wrong]
    drawn, workers = [each.images for each in found if each.images], sum(each.workers for each in found)
    seen = f"{workers:,} workers; {sum(drawn):,} images of {len(drawn)} plans drawn; {len(wrong)} wrong" + _first(wrong)
    return f"{count} random lists on random devices", seen, "0 wrong", not wrong


# --- one CPU


def divided(images: int = 16, steps: int = 8) -> Row:
    """The built-in model in every division of the threads, and what cpu:auto chooses by itself."""
    possible = divisions(processor.read().threads, images)
    with tempfile.TemporaryDirectory() as made:
        words = ["generate", "a cat", "--seed", f"1..{images}", "-s", str(steps), "-q", "--json", "-o", made]
        chosen = _report([*words, "--devices", "cpu:auto"], made)
        rates = {str(one): _rate(_report([*words, "--devices", str(one)], made)) for one in possible}
    (because,) = [one["message"] for one in chosen["plan"]["warnings"] if one["code"] == "processes"]
    taken, best = rates[because.partition(": ")[0]], max(rates.values())
    seen = ", ".join(f"{one} {rate:.2f} images/s" for one, rate in rates.items()) + f"; chosen: {because}"
    return "--devices cpu:auto", seen, f"{AS_GOOD:.0%} of the best", taken >= AS_GOOD * best


def _report(words: Sequence[str], home: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SDCLI_HOME": f"{home}/home"}
    said = subprocess.run([sys.executable, "-P", "-m", "sdcli", *words], env=environment, stdout=subprocess.PIPE)
    report: dict[str, Any] = json.loads(said.stdout)
    return report


def _rate(report: dict[str, Any]) -> float:
    """Images a second while they are drawn, without starting and loading."""
    parts = ("encode_seconds", "denoise_seconds", "decode_seconds")
    alone = sum(batch[part] for batch in report["batches"] for part in parts)
    return len(report["images"]) / max((one["seconds"] for one in report["workers"]), default=alone)  # type: ignore[no-any-return]


# --- lists


class Lines:
    """A list that is nowhere: made line by line."""

    def __init__(self, count: int) -> None:
        self.left = count

    def readline(self, most: int = -1) -> str:
        self.left -= 1
        return f"a cat, number {self.left}\n" if self.left >= 0 else ""


def listed(of: int, number: int, length: int) -> list[int]:
    """Indices of the jobs of one shard."""
    asked = asked_for(Shard(number=number, of=of))
    return [one.index for one in sharing.later(asked, lines(length), 0, 0)]


def shared_out(seed: int = 3) -> Row:
    """Every number of shards, with a list of a random length; then a million in seven."""
    chance, wrong, jobs = random.Random(seed), 0, 0
    for of in range(1, 1001):
        length = chance.randrange(3 * of)
        some = sorted({1, of, *(chance.randrange(1, of + 1) for _ in range(5))})
        found = {number: listed(of, number, length) for number in some}
        wrong += any(found[number] != list(range(number - 1, length, of)) for number in some)
        jobs += sum(map(len, found.values()))
    seven = Counter(index for number in range(1, 8) for index in listed(7, number, MILLION))
    wrong += len(seven) != MILLION or max(seven.values()) != 1
    return (
        "jobs in exactly one shard",
        f"n from 1 to 1,000; {jobs + MILLION:,} jobs, {wrong} wrong",
        "0 wrong",
        not wrong,
    )


def million() -> list[Row]:
    """A thousandth of a million prompts from stdin by the command itself, then what each own job costs."""
    images, took, most, code = forked.answer_of("scale", "thousandth()")
    rows: list[Row] = [
        (
            "shard 7/1000 of a million prompts", f"{images:,} images in {took:.0f} s, {most / 1e6:.0f} MB",
            f"1,000 images, {MOST_BYTES / 1e6:.0f} MB", images == 1000 and most <= MOST_BYTES and not code,
        )
    ]  # fmt: skip
    return rows + bookkeeping()


def thousandth() -> tuple[int, float, int, int]:
    """Images, seconds, the most bytes in memory and the exit code; from a small process, for what a process is told of
    its child's memory includes its own."""
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryFile() as file:
        words = ["generate", "--prompts", "-", "--engine", "fake", "--size", "64x64", "-s", "1", "--seed", "1", "-q"]
        command = [sys.executable, "-P", "-m", "sdcli", *words, "--shard", "7/1000", "-o", made]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SDCLI_HOME": f"{made}/home"}
        file.writelines(b"a cat, number %d\n" % number for number in range(MILLION))
        file.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=file, stdout=subprocess.DEVNULL, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        took = time.perf_counter() - began
        return len(list(Path(made).glob("*.png"))), took, used.ru_maxrss * 1024, process.returncode


def bookkeeping(count: int = MILLION) -> list[Row]:
    """One run of a million: reading, progress and report of each job, without drawing and files; in its own process."""
    each, most = forked.answer_of("scale", f"kept({count})")
    return [
        (
            "bookkeeping of a job, its lines of the report included", f"{each:.0f} µs of CPU",
            f"{MOST_MICROSECONDS:.0f} µs", each <= MOST_MICROSECONDS,
        ),
        (
            f"{count:,} jobs in one run", f"{most / 1e6:,.0f} MB", f"{MOST_BYTES / 1e6:.0f} MB", most <= MOST_BYTES,
        ),
    ]  # fmt: skip


def kept(count: int) -> tuple[float, int]:
    """Microseconds of CPU a job, and the most bytes in memory."""
    folding, progress = Folding(started="", run="r", clock=lambda: 0.0), RunProgress()
    first = plan(jobs=[job()])
    folding(events.Planned(plan=first))
    progress.plan(first)
    began = time.process_time()
    for number, one in enumerate(sharing.later(asked_for(), lines(count), 1, 1), 1):
        for event in happened(number, one, f"{number:064x}", 1):
            folding(event)
            if isinstance(event, events.Step):
                progress.step(event, 0.01)
    with tempfile.TemporaryDirectory() as made:
        reports.write(folding.report(), Path(made) / runs.REPORT)
    spent = time.process_time() - began
    return spent / count * 1e6, _most_bytes()


def asked_for(shard: Shard | None = None) -> Request:
    return Request(prompts=("a cat",), seeds=(1,), num_images=1, width=64, height=64, shard=shard)


def lines(count: int) -> Iterator[prompt_files.Line]:
    return prompt_files.parse(Lines(count), "stdin", "")  # type: ignore[arg-type]


def happened(number: int, one: Job, sha256: str, size: int) -> Iterator[events.Event]:
    """All that is said of a batch of one image."""
    yield events.Encoded(batch=number, tokens=(5,), seconds=0.01)
    yield events.Step(batch=number, step=1, of=1, seconds=0.01)
    yield events.Denoised(batch=number, seconds=0.01)
    yield events.Decoded(batch=number, index=one.index, job=one, width=64, height=64, seconds=0.01)
    yield events.Saved(
        batch=number, index=one.index, status="saved", file=_named(one), path="", format="png", bytes=size, width=64,
        height=64, pixel_sha256=sha256, file_sha256=sha256, seconds=0.01,
    )  # fmt: skip


def _named(one: Job) -> str:
    return f"{one.index + 1:04d}-a-cat-1.png"


def _most_bytes() -> int:
    """Of this process since it was started; getrusage would tell of the one that started it too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# --- records of long lists


def records() -> list[Row]:
    """What going on with a long run takes, and putting shards together: by the image, since both hold each."""
    return [
        _by_the_image("resume", "resumed", MOST_OF_RESUME),
        _by_the_image("runs merge of 4 shards", "merged", MOST_OF_MERGE),
    ]


def _by_the_image(what: str, call: str, most: int, images: int = RECORDS) -> Row:
    few = images // 4
    with tempfile.TemporaryDirectory() as made:
        _, less, _ = forked.answer_of("scale", f"{call}({f'{made}/few'!r}, {few})")
        seconds, more, right = forked.answer_of("scale", f"{call}({f'{made}/many'!r}, {images})")
    each = (more - less) / (images - few)
    said = f"{seconds / images * 1e6:.0f} µs of CPU and {each / 1000:.1f} kB an image, {more / 1e6:,.0f} MB"
    return f"{what}, {images:,} images", said, f"{most / 1000:g} kB an image", right and each <= most


def resumed(folder: str, count: int) -> tuple[float, int, bool]:
    """All but one image are there."""
    to = _recorded(Path(folder), count, None)
    (Path(folder) / _named(job(count - 1))).unlink()
    began = time.process_time()
    before = runs.recover(runs.read(to))
    return time.process_time() - began, _most_bytes(), before.missing == (count - 1,)


def merged(folder: str, count: int, of: int = 4) -> tuple[float, int, bool]:
    parts = [_recorded(Path(folder), count, Shard(number=number, of=of)) for number in range(1, of + 1)]
    began = time.process_time()
    whole = merging.merge(parts)
    return time.process_time() - began, _most_bytes(), whole.report.tally.kept == count


def _recorded(folder: Path, count: int, shard: Shard | None) -> Path:
    """The records of a run that drew so many images, or its share of them; the images are names of a few files."""
    number = shard.number if shard is not None else 1
    to = destination(folder, records=folder / "runs" / f"{RUN}-{number}")
    jobs = sharing.later(asked_for(shard), lines(count), 0, 0)
    first = plan(jobs=[next(jobs)])
    first = replace(first, request=asked_for(shard), batches=((first.jobs[0].index,),))
    journal = runs.begin(to, first, {}, files=Unsynced())
    folding = Folding(started=runs.now(), run=to.run, clock=lambda: 0.0)
    folding(events.Planned(plan=first))
    content = b"an image"
    sha256 = hashlib.sha256(content).hexdigest()
    for batch, one in enumerate((first.jobs[0], *jobs)):
        if batch % LINKS == 0:
            image = folder / f"{number}-{batch}"
            image.write_bytes(content)
        os.link(image, folder / _named(one))
        if batch:
            journal.append("queued", batch=batch, jobs=schema.to_json((one,), whole=True))
        intent = runs.Intent(
            index=one.index, batch=batch, file=_named(one), bytes=len(content), pixel_sha256=sha256, file_sha256=sha256
        )
        journal.append("intent", **schema.to_json(intent))
        journal.append("done", index=one.index)
        for event in happened(batch, one, sha256, len(content)):
            folding(event)
    journal.append("end", status="done", exit_code=0)
    journal.close()
    reports.write(folding.report(), to.records / runs.REPORT, Unsynced())
    return to.records


def main() -> list[Row]:
    return [
        killed(),
        drivers(),
        *(busy(workers) for workers in (1, 2, 4, 8, 16, 32, 64)),
        random_sets(),
        divided(),
        shared_out(),
        *million(),
        *records(),
    ]
