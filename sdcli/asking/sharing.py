"""--shard: one of several shares of what is asked for, the same on every machine without any of them asking another."""

from __future__ import annotations

from collections.abc import Iterator

from sdcli.errors import Usage
from sdcli.request import prompt_files
from sdcli.request.prompt_files import Line
from sdcli.request.request import Job, Request, Shard
from sdcli.terminal import show


def seeded(first: Line | None, lines: Iterator[Line] | None) -> tuple[Line | None, Iterator[Line] | None]:
    """The lines, if each has a seed of its own: a random one would be another in every shard."""
    if first is None or lines is None:
        raise _no_seed("")
    return _checked(first), map(_checked, lines)


def _checked(line: Line) -> Line:
    if not line.seeds:
        raise _no_seed(f"{show(line.where)}: ")
    return line


def _no_seed(where: str) -> Usage:
    return Usage(f"{where}--shard needs a seed: a random one would be another in every shard", hint="--seed 1")


def later(request: Request, lines: Iterator[Line], index: int, batch: int) -> Iterator[Job]:
    """Jobs of lines as they are read, each a batch of its own; of a shard only its own, the others are but counted."""
    shard = request.shard or Shard(number=1, of=1)
    for line in lines:
        count = prompt_files.count(request, line)
        mine = [place for place in range(count) if shard.takes(batch + place)]
        if mine:
            made = prompt_files.of_line(request, line, index)
            yield from (made[place] for place in mine)
        index, batch = index + count, batch + count
