"""The bytes of a pretend GPU, handed out by the rules of torch's caching allocator for CUDA."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SMALLEST = 512
SMALL = 1 << 20  # up to here from segments of 2 MiB
SMALL_SEGMENT = 2 << 20
MIDDLE = 10 << 20  # below: from segments of 20 MiB; above: a segment of its own, in steps of 2 MiB
MIDDLE_SEGMENT = 20 << 20
STEP = 2 << 20


# An allocation in bytes and for a stream; the number of the call whose block is freed; or the cache is given back.
Call = tuple[int, int] | int | None


class OutOfSpace(Exception):
    """The request cannot be met, even after everything cached was given back."""


@dataclass(eq=False)
class Block:
    """A part of a segment. Neighbours are linked, so that free ones merge."""

    start: int
    size: int
    pool: Pool
    used: bool = True
    before: Block | None = None
    after: Block | None = None
    number: int = 0  # of its allocation, in the log


@dataclass(eq=False)
class Pool:
    """Free blocks of one kind for one stream, smallest first."""

    small: bool
    free: list[tuple[int, int, Block]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        block.used = False
        bisect.insort(self.free, (block.size, block.start, block))

    def remove(self, block: Block) -> None:
        del self.free[bisect.bisect_left(self.free, (block.size, block.start, block))]

    def take(self, size: int) -> Block | None:
        """The smallest block that is large enough."""
        at = bisect.bisect_left(self.free, (size,))
        if at == len(self.free):
            return None
        block = self.free.pop(at)[2]
        block.used = True
        return block

    def whole(self) -> Iterator[Block]:
        """Free blocks that are whole segments."""
        for _, _, block in tuple(self.free):
            if block.before is None and block.after is None:
                yield block


@dataclass
class Peaks:
    """A quantity of bytes now, and the most since the last reset."""

    now: int = 0
    peak: int = 0

    def move(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def reset(self) -> None:
        self.peak = self.now


class Allocator:
    """`limit` bytes at most may be reserved. What is allocated is in blocks of 512 bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.allocated = Peaks()
        self.reserved = Peaks()
        self.most_allocated = 0  # ever
        self.requests = 0
        self.log: list[Call] = []
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._next = 1 << 40

    def allocate(self, size: int, stream: int = 0) -> Block:
        self.requests += 1
        size = max(SMALLEST, -(-size // SMALLEST) * SMALLEST)
        pool = self._pools.setdefault((stream, size <= SMALL), Pool(size <= SMALL))
        block = pool.take(size) or self._segment(size, pool)
        if block.size - size >= (SMALLEST if pool.small else SMALL + 1):
            self._split(block, size)
        self.allocated.move(block.size)
        self.most_allocated = max(self.most_allocated, self.allocated.now)
        block.number = len(self.log)
        self.log.append((size, stream))
        return block

    def free(self, block: Block) -> None:
        self.log.append(block.number)
        self.allocated.move(-block.size)
        for other in (block.before, block.after):
            if other is not None and not other.used:
                block.pool.remove(other)
                self._merge(block, other)
        block.pool.add(block)

    def empty_cache(self) -> None:
        self.log.append(None)
        self._give_back()

    def _give_back(self) -> None:
        for pool in self._pools.values():
            for block in pool.whole():
                pool.remove(block)
                self.reserved.move(-block.size)

    def _segment(self, size: int, pool: Pool) -> Block:
        length = SMALL_SEGMENT if pool.small else MIDDLE_SEGMENT if size < MIDDLE else -(-size // STEP) * STEP
        if self.reserved.now + length > self.limit:
            self._give_back()
        if self.reserved.now + length > self.limit:
            raise OutOfSpace(size)
        self.reserved.move(length)
        self._next += length + STEP  # never neighbours: segments do not merge
        return Block(self._next, length, pool)

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.start + size, block.size - size, block.pool, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        block.pool.add(rest)

    def _merge(self, block: Block, other: Block) -> None:
        """`other` becomes part of `block`."""
        block.start, block.size = min(block.start, other.start), block.size + other.size
        if other is block.before:
            block.before = other.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = other.after
            if block.after is not None:
                block.after.before = block


def least(log: Sequence[Call], precision: int = STEP) -> int:
    """The smallest limit, to `precision`, under which the same calls succeed."""
    low, high = 0, precision
    while not _succeeds(log, high):
        low, high = high, 2 * high
    while high - low > precision:
        middle = (low + high) // 2
        low, high = (low, middle) if _succeeds(log, middle) else (middle, high)
    return high


def _succeeds(log: Sequence[Call], limit: int) -> bool:
    allocator = Allocator(limit)
    blocks: dict[int, Block] = {}
    try:
        for number, call in enumerate(log):
            if call is None:
                allocator.empty_cache()
            elif isinstance(call, int):
                allocator.free(blocks.pop(call))
            else:
                blocks[number] = allocator.allocate(*call)
    except OutOfSpace:
        return False
    return True
