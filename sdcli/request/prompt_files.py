"""--prompts FILE: text, JSONL or CSV, one prompt per line, with its own id and settings; stdin is read line by line."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from sdcli import reading
from sdcli.errors import BadFile, SdcliError, Usage
from sdcli.near import near_text, nearest
from sdcli.request import config, jobs
from sdcli.request.request import PER_IMAGE, REFERRING, SECOND, STARTING, STEERING, Job, Request
from sdcli.terminal import show

LONGEST_LINE = 1 << 20
LARGEST_FILE = 64 << 20
_COMMENT = re.compile(r"#+(\s|$)")
# What a line may set for itself; the rest applies to the whole run.
SETTINGS = (*PER_IMAGE, *STARTING, *STEERING, *REFERRING, *SECOND)
COLUMNS = ("prompt", "id", "seed", *SETTINGS)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One prompt and what it sets for itself. `where` is its file and line, for messages."""

    prompt: str
    where: str = field(default="", compare=False)
    id: str | None = None
    seeds: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> tuple[Line, ...]:
    """All lines of a file, checked; at most as many as a run may have images."""
    try:
        with path.open("rb") as file:  # a pipe works too: `--prompts <(…)`
            text = io.TextIOWrapper(io.BytesIO(reading.bounded(file, LARGEST_FILE)), "utf-8-sig", newline="")
        lines = tuple(islice(parse(text, str(path), path.suffix.casefold()), jobs.MOST_JOBS + 1))
    except FileNotFoundError:
        raise Usage(f"--prompts: no file {show(path)}", hint="sdcli help formats") from None
    except OSError as error:
        raise reading.cannot_read(path, error, hint="sdcli help formats") from None
    if len(lines) > jobs.MOST_JOBS:
        raise Usage(f"{show(path)}: more than {jobs.MOST_JOBS} prompts", hint="sdcli help formats")
    if not lines:
        raise Usage(f"{show(path)} contains no prompt", hint="sdcli help formats")
    return lines


def parse(file: IO[str], where: str, suffix: str) -> Iterator[Line]:
    """Lines as they come. Without a known suffix (stdin), a line that begins like a JSON object is read as one.

    In text `# this` is a comment, as in most prompt lists, and `#this` a prompt.
    """
    if suffix == ".csv":
        yield from _csv(_bounded(file, where), where)
        return
    for number, text in enumerate(_bounded(file, where), 1):
        stripped = text.strip()
        if not stripped or _COMMENT.match(stripped):
            continue
        if suffix in (".jsonl", ".ndjson", ".json") or (suffix == "" and re.match(r'\{\s*"', stripped)):
            position = f"{where}:{number}"
            yield _line(reading.read(stripped, position, hint="sdcli help formats", duplicates=True), position)
        else:
            yield Line(prompt=stripped, where=f"{where}:{number}")


def of_line(request: Request, line: Line, first: int = 0) -> tuple[Job, ...]:
    """The jobs of a line, counted from `first`: its own settings over the request's; a mistake is reported with its
    line.

    A line with one seed counts up from it over the request's number of images, as --seed does.
    """
    try:
        return jobs_of(request, line, first)
    except SdcliError as error:
        raise BadFile(f"{show(line.where)}: {error.message}", hint="sdcli help formats") from None


def jobs_of(request: Request, line: Line, first: int = 0) -> tuple[Job, ...]:
    """The same, with a mistake as it is."""
    one = len(line.seeds) == 1
    seeds = jobs.resolve_seeds(line.seeds, len(request.seeds))[0] if one else line.seeds or request.seeds
    if line.settings:
        unset = tuple(side for side in request.sides_of_image if side not in line.settings)
        request = replace(request, sides_of_image=unset, **line.settings)
        jobs.check(replace(request, prompts=(line.prompt,), seeds=seeds, num_images=len(seeds)))
    else:  # most lines of a long list: all else was checked with the request
        jobs.check_prompts((line.prompt,), images=len(seeds) * max(1, len(request.image)))
    made = jobs.make_jobs(request, (line.prompt,), seeds, first)
    return made if line.id is None else tuple(replace(job, id=line.id) for job in made)


def count(request: Request, line: Line) -> int:
    """How many jobs `of_line` makes of it."""
    seeds = request.seeds if len(line.seeds) == 1 else line.seeds or request.seeds
    return len(seeds) * max(1, len(line.settings.get("image", request.image)))


def _bounded(file: IO[str], where: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        try:
            text = file.readline(LONGEST_LINE + 1)
        except UnicodeDecodeError as error:  # read ahead: it is in this line or a later one
            kind = (
                "UTF-16, not UTF-8"
                if error.start == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
                else "not UTF-8"
            )
            raise BadFile(f"{show(where)}: the text is {kind}", hint="sdcli help formats") from None
        if not text:
            return
        if len(text) > LONGEST_LINE:
            raise BadFile(f"{show(where)}:{number} is longer than 1 MiB", hint="sdcli help formats")
        yield text


def _csv(lines: Iterable[str], where: str) -> Iterator[Line]:
    import csv  # few runs read it

    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        repeated = next((name for name in header if header.count(name) > 1), None)
        if repeated is not None:
            raise BadFile(f'{show(where)}:1: more than one column "{show(repeated, 60)}"', hint="sdcli help formats")
        _check_columns(header, f"{where}:1")
        for row in reader:
            position = f"{where}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise BadFile(
                    f"{show(position)}: {len(row)} columns, the first line has {len(header)}", hint="sdcli help formats"
                )
            yield _line({name: value for name, value in zip(header, row, strict=True) if value.strip()}, position)
    except csv.Error as error:
        raise BadFile(f"{show(where)}:{reader.line_num}: {show(error)}", hint="sdcli help formats") from None


def _check_columns(names: Iterable[str], where: str) -> None:
    unknown = next((name for name in names if name not in COLUMNS), None)
    if unknown is not None:
        near = near_text(nearest(unknown, COLUMNS, 1)) or f"; columns are {', '.join(COLUMNS)}"
        near = "; columns are separated by commas" if ";" in unknown or "\t" in unknown else near
        raise BadFile(f'{show(where)}: no column "{show(unknown, 60)}"{near}', hint="sdcli help formats")


def _line(values: Mapping[str, Any], where: str) -> Line:
    _check_columns(values, where)
    prompt = values.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadFile(f"{show(where)}: no prompt", hint="sdcli help formats")
    try:
        settings = {name: config.convert(name, values[name]) for name in SETTINGS if values.get(name) is not None}
        seeds = config.convert("seeds", values["seed"]) if values.get("seed") is not None else ()
    except SdcliError as error:
        raise BadFile(f"{show(where)}: {error.message}", hint="sdcli help formats") from None
    identity = values.get("id")
    return Line(
        prompt=prompt, where=where, id=None if identity is None else str(identity)[:200], seeds=seeds, settings=settings
    )
