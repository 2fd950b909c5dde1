"""Turn by turn, each peer in a process of its own; the record keeps every run that is finished."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from scripts.peers import with_cpp, with_diffusers, with_openvino, with_sdcli
from scripts.peers.peer import Job, Peer, Said
from scripts.peers.process import Failed, plain_environment, watched
from sdcli.bench import surroundings
from sdcli.files import REAL, replace_whole
from sdcli.machine import processor
from sdcli.machine.packages import versions

SCHEMA = "sdcli.peers/1"
PEERS: tuple[Peer, ...] = (
    *with_sdcli.PEERS, *with_diffusers.PEERS, *with_openvino.PEERS, *with_cpp.PEERS,
)  # fmt: skip
OURS = PEERS[0]

Record = dict[str, Any]


# --- the record


def begin(steps: int, tiny: bool) -> Record:
    of = circumstances(steps, tiny)
    return {"schema": SCHEMA, "of": of, "dates": [], "load": [], "missing": {}, "cases": {}}


def read(path: Path) -> Record:
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise SystemExit(f"{path} is no record of {SCHEMA}")
    return record


def same_work(record: Record, steps: int, tiny: bool) -> None:
    """A record of another machine, of other versions or of other work cannot be gone on with."""
    of = circumstances(steps, tiny)
    if other := [name for name in of if record["of"].get(name) != of[name]]:
        raise SystemExit(f"that record differs in {', '.join(other)}: {record['of']}")


def circumstances(steps: int, tiny: bool) -> dict[str, Any]:
    chip = processor.read()
    packages = sorted({package for peer in PEERS for package in peer.packages})
    found = {version.name: version.version for version in versions(packages) if version.version}
    return {
        "steps": steps, "tiny": tiny, "processor": chip.name, "isa": chip.isa, "threads": chip.threads,
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
        "versions": found, "sdcli": surroundings.revision(),
    }  # fmt: skip


def write(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(REAL, path, [(json.dumps(record, indent=1) + "\n").encode()])


@contextmanager
def session(record: Record) -> Iterator[None]:
    """Notes the day, and the load before and after."""
    record["dates"] = sorted({*record["dates"], date.today().isoformat()})
    record["load"].append([processor.read().load, None])
    try:
        yield
    finally:
        record["load"][-1][1] = processor.read().load


# --- all turns of one model and size


def go(record: Record, job: Job, peers: Sequence[Peer], turns: int, path: Path) -> None:
    """Every peer once, then again, until each has as many runs as there are to be turns. Whoever fails sits out."""
    case = record["cases"].setdefault(job.name, {"prepared": {}, "runs": {}, "failed": {}})
    case["failed"] = {}
    playing = [peer for peer in peers if len(case["runs"].get(peer.name, ())) < turns]
    for peer in playing:
        _try(case, peer, job, path, record, prepare=True)
    for turn in range(turns):
        first = turn % max(1, len(peers))
        for peer in (*peers[first:], *peers[:first]):  # nobody always follows the same one
            if peer.name not in case["failed"] and len(case["runs"].get(peer.name, ())) <= turn:
                _try(case, peer, job, path, record, prepare=False)


def _try(case: dict[str, Any], peer: Peer, job: Job, path: Path, record: Record, *, prepare: bool) -> None:
    try:
        if prepare:
            _prepare(case, peer, job)
        else:
            run = drawn(peer, job)
            case["runs"].setdefault(peer.name, []).append(run)
            print(f"{job.name}  {peer.name:22} {run['seconds']:7.1f} s  {run['peak'] / 1e9:5.2f} GB", file=sys.stderr)
    except Failed as failure:
        case["failed"][peer.name] = str(failure)
        print(f"{job.name}  {peer.name}: {failure}", file=sys.stderr)
    write(record, path)


def _prepare(case: dict[str, Any], peer: Peer, job: Job) -> None:
    if peer.prepare is None:
        return
    ended = watched(peer.prepare(_with_image(peer, job)), peer.accepts, _environment(job))
    case["prepared"].setdefault(peer.name, {"seconds": ended.seconds, "peak": ended.peak})


def drawn(peer: Peer, job: Job) -> Said:
    """One run; its files were read just before, so that loading never waits for the disk."""
    job = _with_image(peer, job)
    for file in peer.files(job):
        _read(file)
    ended = watched(peer.command(job), peer.accepts, _environment(job))
    said = peer.read(ended.line)
    if not Path(job.image).is_file():
        raise Failed("it saved no image")
    return {**said, "seconds": ended.seconds, "peak": max(ended.peak, said.get("peak", 0)), "others": ended.others}


def _environment(job: Job) -> dict[str, str]:
    return plain_environment(SDCLI_HOME=str(Path(job.made) / "home"))


def _with_image(peer: Peer, job: Job) -> Job:
    image = Path(job.made) / "images" / f"{peer.name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.unlink(missing_ok=True)
    return replace(job, image=str(image))


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
