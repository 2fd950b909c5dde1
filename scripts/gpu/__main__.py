"""Everything that only a GPU can tell, the most important first, in as much time as there is.

    python -m scripts.gpu --out FOLDER [--limit-seconds 540] [--from FOLDER] [--weights FOLDER] [--only TEXT …]
    python -m scripts.gpu --out FOLDER --pretend 8GiB --tiny
    python -m scripts.gpu --check docs/benchmarks/gpu-NAME.json

What GPU it is; a step and a decode in every way of execution, beside diffusers' eager and compiled; memory of the chief
setups, beside what the pretend GPU of the tests counts for them; images equal to diffusers' own; steps that never wait;
memory of every other setup and under caps; seconds of a step by sdcli's own bench. Each is a piece of its own, with
random weights that are made where it runs. FOLDER/gpu-NAME.json has every finished piece, so that the same command goes
on where it stopped (--from takes the record of an earlier folder along); FOLDER/gpu.md is its page.
`--check` holds today's forecast of memory against a record. --pretend runs everything on a pretend GPU of that size,
--tiny with models of a few channels. It has not run on a real GPU yet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.gpu import bench, exact, memory, race
from scripts.gpu.lab import Lab, OutOfTime, Piece, Row
from scripts.measure_memory import GOAL, MIB, gib
from sdcli.files import REAL, replace_whole

SCHEMA = "sdcli.gpu/1"
MARKS = {True: "holds", False: "**fails**", None: "not run"}

Record = dict[str, Any]


def pieces() -> list[Piece]:
    counted, rest = memory.pieces()
    return [*race.pieces(), *counted, *exact.pieces(), *rest, *bench.pieces()]


# --- the record


def begin(facts: Mapping[str, Any], lab: Lab, folders: Sequence[Path]) -> Record:
    """With what the folders' records of this machine and these versions have; a record of another one is an error."""
    machine = {name: value for name, value in facts.items() if name not in ("free", "host_to_device")}
    record: Record = {
        "schema": SCHEMA, "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {**machine, "pretend": lab.pretend, "tiny": lab.tiny},
        "free": facts["free"], "host_to_device": facts["host_to_device"], "found": {},
    }  # fmt: skip
    for path in [path for folder in folders for path in sorted(folder.glob("gpu-*.json"))]:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["machine"] != record["machine"]:
            raise SystemExit(f"{path} is of another machine or other versions: {earlier['machine']}")
        record |= {"date": earlier["date"], "found": {**record["found"], **earlier["found"]}}
    return record


def write(record: Record, folder: Path) -> None:
    name = ("pretend " if record["machine"]["pretend"] else "") + record["machine"]["device"]
    path = folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    for file, text in ((path, json.dumps(record, indent=1) + "\n"), (folder / "gpu.md", page(record))):
        replace_whole(REAL, file, [text.encode()])


def go(record: Record, chosen: Sequence[Piece], lab: Lab, folder: Path) -> int:
    """Finds out what is not known yet, as long as the time lasts, then what failed before; how many pieces are left."""
    left = [piece for piece in chosen if piece.name not in record["found"]]
    left += [piece for piece in chosen if piece.name in failures(record)]
    with contextlib.suppress(OutOfTime, KeyboardInterrupt):
        for piece in tuple(left):
            if lab.left < piece.seconds:
                continue
            started = time.monotonic()
            answer = piece.go(lab)
            record["found"][piece.name] = answer
            write(record, folder)
            left.remove(piece)
            print(f"{time.monotonic() - started:4.0f} s  {piece.name}: {answer.get('message') or 'done'}", flush=True)
    return len(left)


# --- what came of it


def verdicts(record: Record) -> list[Row]:
    found = working(record)
    goals = memory.verdicts(memory.results(found), record["host_to_device"])
    timed = not record["machine"]["pretend"] and not record["machine"]["tiny"]
    speed = race.verdicts(found, record["machine"]["device"]) if timed else []
    return [*speed, *exact.verdicts(found), *([] if record["machine"]["tiny"] else goals)]


def working(record: Record) -> dict[str, dict[str, Any]]:
    return {name: answer for name, answer in record["found"].items() if not answer.get("message")}


def failures(record: Record) -> dict[str, str]:
    """By piece. That a plan does not fit is an answer too."""
    broken = {name: answer for name, answer in record["found"].items() if answer.get("message")}
    return {name: answer["message"] for name, answer in broken.items() if not answer.get("refused")}


def page(record: Record) -> str:
    machine, found = record["machine"], working(record)
    pretend = "**Nothing here was measured: the GPU is a pretend one**, which counts bytes and cannot tell time. "
    tiny = "The models are tiny ones, at 64×64. " if machine["tiny"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return "\n".join([
        f"# On a GPU: {machine['device']}",
        "",
        f"{pretend if machine['pretend'] else ''}{tiny}Written by `python -m scripts.gpu`; nothing is edited by hand. "
        f"{record['date']}, {gib(machine['total'])} GiB, {gib(record['free'])} free, capability "
        f"{machine['capability']}, driver {machine['driver']}, Python {machine['python']}, {versions}, "
        f"{record['host_to_device'] / 1e9:.1f} GB/s from page-locked memory. {len(record['found'])} of {len(pieces())} "
        "pieces.",
        "",
        "| goal | seen | must be | |",
        "| --- | --- | --- | --- |",
        *[f"| {what} | {seen} | {goal} | {MARKS[holds]} |" for what, seen, goal, holds in verdicts(record)],
        "",
        *[f"**Failed**: {name}: {why}\n" for name, why in failures(record).items()],
        *race.page(found),
        *exact.page(found),
        *memory.page(memory.results(record["found"])),
        *bench.page(found),
    ]).rstrip() + "\n"  # fmt: skip


def checked(path: Path) -> int:
    rows = memory.check(json.loads(path.read_text(encoding="utf-8"))["found"])
    far = 0
    for name, predicted, reserved in rows:
        error = (predicted - reserved) / reserved
        far += abs(error) > GOAL
        print(f"{name}: {gib(predicted)} predicted now, {gib(reserved)} reserved then, {error:+.1%}")
    print(f"{len(rows) - far} of {len(rows)} within 10 %")
    return 1 if far or not rows else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the record and the page go")
    parser.add_argument("--from", dest="earlier", type=Path, help="a folder whose record is taken along")
    parser.add_argument("--weights", type=Path, help="where the models are, or will be (12 GB)")
    parser.add_argument("--only", action="append", help="pieces with this in their name; repeatable")
    parser.add_argument("--limit-seconds", type=float, default=540, help="what is not finished by then is not kept")
    parser.add_argument("--list", action="store_true", help="the pieces' names")
    parser.add_argument("--check", type=Path, help="a record to hold the forecast against")
    parser.add_argument("--pretend", default="", metavar="SIZE", help="on a pretend GPU with so much memory")
    parser.add_argument("--tiny", action="store_true", help="with models of a few channels, at 64×64")
    asked = parser.parse_args(arguments)
    deadline = time.monotonic() + asked.limit_seconds
    chosen = [piece for piece in pieces() if not asked.only or any(part in piece.name for part in asked.only)]
    if asked.list:
        print("\n".join(piece.name for piece in chosen))
        return 0
    if asked.check:
        return checked(asked.check)
    if not asked.out or not chosen:
        parser.error("--out FOLDER" if not asked.out else "no piece has that in its name; --list names them")
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sdcli-gpu-") as temporary:
        lab = Lab(
            weights=asked.weights or Path(temporary), deadline=deadline, size=asked.pretend,
            pretend=bool(asked.pretend), tiny=asked.tiny,
        )  # fmt: skip
        facts = lab.ask("facts")
        if "message" in facts:
            raise SystemExit(facts["message"])
        lab = lab if lab.pretend else replace(lab, size=f"{facts['total'] / MIB}MiB")
        record = begin(facts, lab, [folder for folder in (asked.earlier, asked.out) if folder])
        write(record, asked.out)
        left = go(record, chosen, lab, asked.out)
    print(f"{asked.out / 'gpu.md'}: " + (f"{left} pieces left: the same command goes on" if left else "all of it"))
    failed = [row for row in verdicts(record) if row[3] is False]
    for what, seen, goal, _ in failed:
        print(f"FAILS {what}: {seen}, {goal}")
    return 1 if failed or failures(record) else 0


if __name__ == "__main__":
    sys.exit(main())
