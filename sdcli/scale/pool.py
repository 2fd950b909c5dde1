"""An engine that owns a worker for each device: one plan goes in, one stream of events comes out."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdcli.errors import Bug, SdcliError
from sdcli.events import Decoded, Degraded, Done, Event, Failed, KeptStep, Warned
from sdcli.machine.hardware import Hardware
from sdcli.plan.batches import Batch
from sdcli.plan.fallbacks import changes_pixels
from sdcli.plan.plan import Plan, WorkerPlan
from sdcli.scale.sharing_out import SharingOut, Taken
from sdcli.terminal import show
from sdcli.workers.worker import CHILD, Died, Worker

TRIES = 3  # of a batch that ended its worker: the third that dies of it is the last
DEATHS = 5  # of a worker in a row, without an image between them: it is broken
WAITING = 256  # events on their way from all workers, images among them
SECONDS_OF_WORK = 3.0  # that are taken at once, where batches are short
SECONDS_OF_OFFLOAD = 30.0  # where prompts are encoded ahead, since encoders make room for the UNet
LOOK = 1.0  # seconds between two looks at workers that say nothing
GRACE = 20.0  # seconds for a step to end, once the run is over: a cluster that wants its node back waits for 30


class Pool:
    """Batches go one by one to whoever has nothing to do. Each image comes once, whatever happens to the workers."""

    def __init__(
        self, engine: str = "local", command: Callable[[WorkerPlan], Sequence[str]] = lambda worker: CHILD
    ) -> None:  # fmt: skip
        """`command` starts a worker's process."""
        self._engine = engine
        self._command = command
        self._workers: dict[str, Worker] = {}

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        """What is not drawn when the last worker gives up is missing, and its error is the run's."""
        run = _Run(plan, plan.numbered() if batches is None else batches, kept or {}, self._worker)
        try:
            yield from run.events()
        finally:
            run.stop()

    def without_own(self, hardware: Hardware) -> Hardware:
        return hardware

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _worker(self, own: WorkerPlan) -> Worker:
        """It keeps what it loaded from one run to the next."""
        return self._workers.setdefault(own.name, Worker(self._engine, self._command(own)))


class _Run:
    def __init__(
        self, plan: Plan, batches: Iterable[Batch], kept: Mapping[int, bytes], worker: Callable[[WorkerPlan], Worker]
    ) -> None:
        self.alike = alike(plan.workers)
        self.kept = kept if self.alike else {}
        self.happening: queue.Queue[Event | None] = queue.Queue(WAITING)  # None: a worker has ended
        self.sharing = SharingOut(batches, [own.name for own in plan.workers])
        self.error: SdcliError | None = None  # why the last worker that gave up did
        self.stopping = False
        self._looked = 0.0
        self._seats = [_Seat(self, plan.of(own), own.name, worker(own)) for own in plan.workers]

    def events(self) -> Iterator[Event]:
        environment: dict[str, Any] = {}
        for seat in self._seats:
            seat.start()
        drawing = len(self._seats)
        while drawing:
            self._look()
            try:
                event = self.happening.get(timeout=LOOK)
            except queue.Empty:
                continue
            if event is None:
                drawing -= 1
            elif isinstance(event, Done):
                environment |= event.environment
            else:
                yield event
        if self.sharing.error is not None:
            raise self.sharing.error
        if self.sharing.left and self.error is not None:
            raise self.error
        yield Done(environment=environment)

    def _look(self) -> None:
        """Ends workers that have said nothing for too long; not at each event, of which a second may have thousands."""
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            for seat in self._seats:
                seat.worker.end_if_stuck(seat.plan)

    def say(self, event: Event | None) -> None:
        while True:
            if self.stopping:
                return
            with contextlib.suppress(queue.Full):
                return self.happening.put(event, timeout=LOOK)

    def stop(self) -> None:
        """Every worker finishes its step."""
        self.stopping = True
        self.sharing.stop()
        for seat in self._seats:
            seat.worker.cancel()
        until = time.monotonic() + GRACE
        for seat in [seat for seat in self._seats if seat.ident is not None]:  # those that were started
            seat.join(max(0.0, until - time.monotonic()))
            if seat.is_alive():
                seat.worker.kill("it did not end")
                seat.join()


class _Seat(threading.Thread):
    """One worker, fed until there is nothing left or it cannot go on."""

    def __init__(self, run: _Run, plan: Plan, name: str, worker: Worker) -> None:
        super().__init__(name=name, daemon=True)
        self.plan = plan  # with the setup of the fallback that it is on
        self.worker = worker
        self._run = run
        self._deaths = 0
        self._at: Taken | None = None  # what it is drawing

    def run(self) -> None:
        try:
            while taken := self._run.sharing.take(self.name, self._seconds):
                self._serve(taken)
        except SdcliError as error:
            self._give_up(error)
        except Exception as error:
            self._give_up(Bug(f"{type(error).__name__}: {error}"))
        finally:
            self._run.sharing.leave(self.name)
            self._run.say(None)

    @property
    def _seconds(self) -> float:
        return SECONDS_OF_WORK if self.plan.setup.placement == "resident" else SECONDS_OF_OFFLOAD

    def _serve(self, taken: Sequence[Taken]) -> None:
        began = time.monotonic()
        try:
            self._draw(taken)
        except Died as died:
            self._lost(taken, died)
        except BaseException:
            self._run.sharing.give_back(taken)
            if not self._run.stopping:  # else it was cancelled, from here
                raise
        else:
            self._run.sharing.drew(self.name, len(taken), time.monotonic() - began)
            if not all(one.over for one in taken):  # it ended without them, and without a word
                self._lost(taken, Died(Bug(f"{self.name} drew less than it was asked for")))

    def _draw(self, taken: Sequence[Taken]) -> None:
        for event in self.worker.run(_part(self.plan, taken), kept=self._begun(taken)):
            number = getattr(event, "batch", None)
            one = taken[number] if number is not None else None
            if one is None:
                event = replace(event, worker=self.name)
            else:
                self._at = one
                event = replace(event, batch=one.batch[0], worker=self.name)
                if isinstance(event, KeptStep) and self._run.alike:
                    one.kept = event.state
            if isinstance(event, Degraded):
                self._fall_back(event)
            if one is not None and isinstance(event, (Decoded, Failed)):
                if event.index in one.done:
                    continue  # drawn before its worker died
                one.done.add(event.index)
                self._deaths = 0
            self._run.say(event)
            if one is not None and one.over:
                self._run.sharing.finished(one)
            if self._run.stopping:  # it came before the worker had anything to cancel
                self.worker.cancel()

    def _begun(self, taken: Sequence[Taken]) -> Mapping[int, bytes]:
        """The last steps that were kept, by another run or by a worker that died since."""
        steps = enumerate(one.kept or self._run.kept.get(one.batch[0], b"") for one in taken)
        return {place: step for place, step in steps if step}

    def _fall_back(self, event: Degraded) -> None:
        """What it gave up, it does without from now on; the others go on as planned."""
        given: dict[str, Any] = {slot: choice for slot, choice in event.after.items() if slot != "upscaler_tile"}
        if "upscaler_tile" in event.after:
            given["upscaler_tile"] = int(event.after["upscaler_tile"].replace("whole", "0"))
        self.plan = replace(self.plan, setup=replace(self.plan.setup, **given))

    def _lost(self, taken: Sequence[Taken], died: Died) -> None:
        """Another draws it; a batch over which one worker after another dies is given up. It was at the one that it
        spoke of last, or at the next."""
        self._deaths += 1
        left = [one for one in taken if not one.over]
        blamed = self._at if self._at in left else next(iter(left), None)
        if blamed is not None:
            blamed.tries, blamed.last = blamed.tries + 1, self.name
            if blamed.tries >= TRIES:
                self._fail(blamed, died.error)
        self._run.sharing.give_back(one for one in left if not one.over)
        if self._deaths >= DEATHS:
            raise died.error
        self._run.say(
            Warned(worker=self.name, code="worker-died", message=f"{self.name}: {died.error.message}; it starts again")
        )

    def _fail(self, one: Taken, error: SdcliError) -> None:
        number, jobs = one.batch
        for job in jobs:
            if job.index not in one.done:
                one.done.add(job.index)
                self._run.say(Failed(worker=self.name, batch=number, index=job.index, error=error.to_json()))
        self._run.sharing.finished(one)

    def _give_up(self, error: SdcliError) -> None:
        if self._run.sharing.left:
            self._run.error = error
            message = f"{self.name} is left out from here on: {show(error.message, 400)}"
            self._run.say(Warned(worker=self.name, code="left-out", message=message))


def alike(workers: Sequence[WorkerPlan]) -> bool:
    """Whether an image that one of them began can be finished by another: under one setup, on one kind of device."""
    first = workers[0]
    return all(
        (own.hardware.backend, own.hardware.name) == (first.hardware.backend, first.hardware.name)
        and own.setup.threads == first.setup.threads and not changes_pixels(own.setup, first.setup)
        for own in workers
    )  # fmt: skip


def _part(plan: Plan, taken: Sequence[Taken]) -> Plan:
    """Only what is to be drawn now: all of a long list would be sent with every order."""
    batches = [one.batch[1] for one in taken]
    first = batches[0][0]
    return replace(
        plan, request=replace(plan.request, prompts=(first.prompt,), seeds=(first.seed,), image=()),
        jobs=tuple(job for jobs in batches for job in jobs),
        batches=tuple(tuple(job.index for job in jobs) for jobs in batches),
    )  # fmt: skip
