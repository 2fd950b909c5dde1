"""Which worker draws which batch: whoever has nothing to do takes from one queue, what a worker lost goes back, and at
the end what takes too long is drawn by another as well."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sdcli.plan.batches import WINDOW, Batch

READ_AHEAD = 2 * WINDOW  # batches of a stream that wait for a worker
POLL = 0.5  # seconds after which whoever waits looks again
SLOW = 2.0  # times as long as who has nothing to do would take for a batch: it is worth drawing again
LEAST_SLOW = 1.0  # seconds


@dataclass(eq=False)
class Taken:
    """A batch on its way. `tries`: how often a worker died over it, `last` the one that did. `kept`: its last step, if
    steps are kept."""

    batch: Batch
    done: set[int] = field(default_factory=set)  # indices of its images that are drawn, or never will be
    tries: int = 0
    last: str = ""
    by: list[str] = field(default_factory=list)  # who draws it now: one, at the end perhaps two
    drawn_by: str = ""  # who came with its last image
    since: float = 0.0  # when it was taken, on time.monotonic
    kept: bytes = b""

    @property
    def over(self) -> bool:
        return len(self.done) >= len(self.batch[1])


class SharingOut:
    """Batches are read in a thread of their own, as they are needed: stdin may keep everybody waiting but those who
    have work."""

    def __init__(self, batches: Iterable[Batch], workers: Iterable[str]) -> None:
        self.error: BaseException | None = None  # of reading them
        self._waiting: deque[Taken] = deque()
        self._again: deque[Taken] = deque()
        self._drawing: set[Taken] = set()
        self._present = set(workers)
        self._rates: dict[str, float] = {}  # batches a second
        self._ended = self._stopped = False
        self._changed = threading.Condition()
        known = isinstance(batches, Sequence)
        self._room = threading.Semaphore(len(batches) + 1 if known else READ_AHEAD)  # type: ignore[arg-type]
        threading.Thread(target=self._read, args=(iter(batches),), daemon=True).start()

    # --- for workers

    def take(self, worker: str, seconds: float) -> list[Taken]:
        """What to draw next, of short batches as many as take so long. Waits as long as something may still come;
        nothing: all is done, or stopped."""
        with self._changed:
            while not self._stopped:
                found = self._next(worker, seconds)
                if found:
                    for one in found:
                        one.by.append(worker)
                        one.since = time.monotonic()
                        self._drawing.add(one)
                    return found
                if self._ended and not self._waiting and not self._again and not self._drawing:
                    return []
                self._changed.wait(POLL)
        return []

    def is_first(self, one: Taken, index: int, worker: str) -> bool:
        """Whether nobody came with this image before; from now on somebody has."""
        with self._changed:
            if index in one.done:
                return False
            one.done.add(index)
            one.drawn_by = worker
            return True

    def finished(self, one: Taken) -> None:
        with self._changed:
            self._drawing.discard(one)
            self._changed.notify_all()

    def give_back(self, worker: str, taken: Iterable[Taken]) -> None:
        """What a worker took and did not finish, to be drawn before anything else, unless another draws it too."""
        with self._changed:
            for one in taken:
                if worker in one.by:
                    one.by.remove(worker)
                if one in self._drawing and not one.by:
                    self._drawing.remove(one)
                    self._again.append(one)
            self._changed.notify_all()

    def drew(self, worker: str, batches: int, seconds: float) -> None:
        if batches and seconds > 0:
            self._rates[worker] = batches / seconds

    def join(self, worker: str) -> None:
        with self._changed:
            self._present.add(worker)

    def leave(self, worker: str) -> None:
        """It takes no more; the others do not wait for it."""
        with self._changed:
            self._present.discard(worker)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def left(self) -> bool:
        """Whether something is still to be drawn."""
        with self._changed:
            return not self._ended or bool(self._waiting or self._again or self._drawing)

    # --- inside

    def _next(self, worker: str, seconds: float) -> list[Taken]:
        """One batch that was tried before, alone: who dies of it takes no other along, and the next to try it is
        another worker, where there is one. Else new ones, as many as are a little work."""
        for one in self._again:
            if one.last != worker or self._present <= {worker}:
                self._again.remove(one)
                return [one]
        found = []
        for _ in range(min(self._fair(worker, seconds), len(self._waiting))):
            found.append(self._waiting.popleft())
            self._room.release()
        return found or self._slow(worker)

    def _slow(self, worker: str) -> list[Taken]:
        """Where nothing is left to take: what another has been at for much longer than this one would be."""
        rate = self._rates.get(worker)
        if rate is None or not self._ended or self._waiting:
            return []
        before = time.monotonic() - max(LEAST_SLOW, SLOW / rate)
        slow = [one for one in self._drawing if len(one.by) == 1 and one.by != [worker] and one.since < before]
        return sorted(slow, key=lambda one: one.since)[:1]

    def _fair(self, worker: str, seconds: float) -> int:
        """Short batches are taken several at once, since each order takes its time; but never more than half of this
        worker's share of what is known to be left, so that all end together."""
        rate = self._rates.get(worker)
        if rate is None or (not self._ended and len(self._waiting) < len(self._present)):
            return 1
        share = len(self._waiting) * rate / (sum(self._rates.values()) or rate) / 2
        return max(1, min(int(rate * seconds), int(share), WINDOW))

    def _read(self, batches: Iterator[Batch]) -> None:
        try:
            while not self._stopped:
                self._room.acquire()
                batch = next(batches, None)
                if batch is None:
                    break
                with self._changed:
                    self._waiting.append(Taken(batch))
                    self._changed.notify()
        except BaseException as error:  # it is raised where the events are read
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
