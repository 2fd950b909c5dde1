"""Rows of a report, by number: a usual run's in memory, those of a very long one on the disk."""

from __future__ import annotations

import heapq
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import IO, Any, Generic, TypeVar

from sdcli.files import REAL, write_whole

MOST_IN_MEMORY = 10_000  # as many images as a plan may list

Row = TypeVar("Row")


class Rows(Sequence[Row], Generic[Row]):
    """In the order of their numbers, each of which comes once. Of more than `most` all are lines of a file without a
    name, which goes with the process; where the disk has no room for it they stay in memory."""

    def __init__(self, write: Callable[[Row], bytes], read: Callable[[bytes], Row], most: int = MOST_IN_MEMORY) -> None:
        self._write, self._read, self._most = write, read, most
        self._newest: dict[int, Row] = {}
        self._numbers, self._ends = array("q"), array("q")  # of the lines in the file
        self._file: IO[bytes] | None = None

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, number: int, row: Row) -> None:
        self._newest[number] = row
        if len(self._newest) > self._most:
            self._store()

    def find(self, number: int) -> Row | None:
        if number in self._newest or number not in self._numbers:
            return self._newest.get(number)
        return self._read(self._stored(self._numbers.index(number)))

    def numbers(self) -> Iterable[int]:
        return chain(self._numbers, self._newest)

    def lines(self) -> Iterator[bytes]:
        """Each row as it is written."""
        for number, line in self._in_order():
            yield self._write(self._newest[number]) if line is None else self._stored(line)

    def all(self) -> Sequence[Row]:
        """Values, or what reads them one by one where they are in the file."""
        return self if self._file is not None else tuple(row for _, row in sorted(self._newest.items()))

    def __iter__(self) -> Iterator[Row]:
        return map(self._read, self.lines())

    def __len__(self) -> int:
        return len(self._numbers) + len(self._newest)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self)[place]
        return next(islice(self, place if place >= 0 else len(self) + place, None))

    def _in_order(self) -> Iterator[tuple[int, int | None]]:
        """Every number, with the number of its line where it has one."""
        stored = sorted(range(len(self._numbers)), key=self._numbers.__getitem__)
        return heapq.merge(
            ((self._numbers[line], line) for line in stored), ((one, None) for one in sorted(self._newest))
        )

    def _stored(self, line: int) -> bytes:
        assert self._file is not None
        begins = self._ends[line - 1] if line else 0
        self._file.seek(begins)
        return self._file.read(self._ends[line] - begins)

    def _store(self) -> None:
        lines = [self._write(row) for row in self._newest.values()]
        end = self._ends[-1] if self._ends else 0
        try:
            self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the rows are
            self._file.seek(end)
            write_whole(REAL, self._file.fileno(), b"".join(lines))
        except OSError:
            self._most = sys.maxsize
            return
        self._numbers.extend(self._newest)
        self._ends.extend(end + length for length in accumulate(map(len, lines)))
        self._newest.clear()
