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


@dataclass(frozen=True)
class Released:
    """The graph that had this private pool is gone."""

    pool: int


# An allocation in bytes, for a stream and from a graph's private pool (0: none); the number of the call whose block is
# freed; a private pool is released; or the cache is given back.
Call = tuple[int, ...] | int | Released | None


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
        self._pools: dict[tuple[int, int, bool], Pool] = {}
        self._private: set[int] = set()  # pools of graphs that live: nothing of them is given back
        self._next = 1 << 40

    def allocate(self, size: int, stream: int = 0, private: int = 0) -> Block:
        """`private`: the pool of the graph that is being captured. Meanwhile nothing cached can be given back."""
        self.requests += 1
        size = max(SMALLEST, -(-size // SMALLEST) * SMALLEST)
        pool = self._pools.setdefault((private, stream, size <= SMALL), Pool(size <= SMALL))
        if private:
            self._private.add(private)
        block = pool.take(size) or self._segment(size, pool, give_back=not private)
        if block.size - size >= (SMALLEST if pool.small else SMALL + 1):
            self._split(block, size)
        self.allocated.move(block.size)
        self.most_allocated = max(self.most_allocated, self.allocated.now)
        block.number = len(self.log)
        self.log.append((size, stream, private))
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

    def release(self, private: int) -> None:
        if private in self._private:
            self.log.append(Released(private))
            self._private.discard(private)

    def _give_back(self) -> None:
        for (private, *_), pool in self._pools.items():
            for block in pool.whole() if private not in self._private else ():
                pool.remove(block)
                self.reserved.move(-block.size)

    def _segment(self, size: int, pool: Pool, give_back: bool) -> Block:
        length = SMALL_SEGMENT if pool.small else MIDDLE_SEGMENT if size < MIDDLE else -(-size // STEP) * STEP
        if self.reserved.now + length > self.limit and give_back:
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
            elif isinstance(call, Released):
                allocator.release(call.pool)
            elif isinstance(call, int):
                allocator.free(blocks.pop(call))
            else:
                blocks[number] = allocator.allocate(*call)
    except OutOfSpace:
        return False
    return True
