"""An engine that owns a worker for each device: one plan goes in, one stream of events comes out."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from sdcli.errors import Bug, Cancelled, SdcliError
from sdcli.events import Decoded, Degraded, Done, Event, Failed, KeptStep, Warned
from sdcli.machine.hardware import Hardware
from sdcli.plan.batches import Batch
from sdcli.plan.fallbacks import changes_pixels
from sdcli.plan.plan import Plan, WorkerPlan
from sdcli.plan.several import LEFT_OUT, fallen_back
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
        asked = plan.numbered() if batches is None else batches
        run = _Run(plan, asked, kept or {}, self._worker, self._newcomers)
        try:
            yield from run.events()
        finally:
            run.stop()

    def without_own(self, hardware: Hardware) -> Hardware:
        return hardware

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _newcomers(self, plan: Plan) -> Iterable[WorkerPlan | Warned]:
        """Workers that were not there when the run began."""
        return ()

    def _worker(self, own: WorkerPlan) -> Worker:
        """It keeps what it loaded from one run to the next."""
        return self._workers.setdefault(own.name, Worker(self._engine, self._command(own)))


class _Run:
    def __init__(
        self, plan: Plan, batches: Iterable[Batch], kept: Mapping[int, bytes], worker: Callable[[WorkerPlan], Worker],
        newcomers: Callable[[Plan], Iterable[WorkerPlan | Warned]],
    ) -> None:  # fmt: skip
        self.alike = alike(plan.workers)
        self.kept = kept if self.alike else {}
        self.happening: queue.Queue[Event | None] = queue.Queue(WAITING)  # None: a worker has ended
        self.sharing = SharingOut(batches, [own.name for own in plan.workers])
        self.error: SdcliError | None = None  # why the last worker that gave up did
        self.stopping = False
        self._looked = 0.0
        self._plan, self._worker, self._newcomers = plan, worker, newcomers
        self._seats = [self._seat(own) for own in plan.workers]

    def events(self) -> Iterator[Event]:
        environment: dict[str, Any] = {}
        for seat in self._seats:
            seat.start()
        while self._going_on():
            yield from self._look()
            try:
                event = self.happening.get(timeout=LOOK)
            except queue.Empty:
                continue
            if isinstance(event, Done):
                environment |= event.environment
            elif event is not None:
                yield event
        if self.sharing.error is not None:
            raise self.sharing.error
        if self.sharing.left and self.error is not None:
            raise self.error
        yield Done(environment=environment)

    def outrun(self, one: Taken) -> None:
        """Whoever else is at this batch, and at nothing that is still to be drawn, has no need to go on."""
        for seat in self._seats:
            if one in seat.taken and seat.outrun:
                seat.worker.cancel()

    def _going_on(self) -> bool:
        """Nobody waits for a worker that has not started yet, or draws what another was faster with."""
        if not self.happening.empty() or any(seat.drawing for seat in self._seats):
            return True
        return self.sharing.left and any(not seat.over for seat in self._seats)

    def _seat(self, own: WorkerPlan) -> _Seat:
        return _Seat(self, self._plan.of(own), own.name, self._worker(own))

    def _look(self) -> Iterator[Event]:
        """Ends workers that have said nothing for too long, and takes those that have come; not at each event, of which
        a second may have thousands."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        for seat in self._seats:
            seat.worker.end_if_stuck(seat.plan)
        for new in self._newcomers(self._plan) if self.sharing.left else ():
            if isinstance(new, Warned):
                yield new
                continue
            self.sharing.join(new.name)
            self._seats.append(self._seat(new))
            self._seats[-1].start()

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
        self.taken: Sequence[Taken] = ()
        self.over = False
        self._run = run
        self._deaths = 0
        self._at: Taken | None = None  # what it is drawing
        self._ready = False

    def run(self) -> None:
        try:
            while self._readied() and (taken := self._run.sharing.take(self.name, self._seconds)):
                self.taken = taken
                self._serve(taken)
                self.taken = ()
        except SdcliError as error:
            self._give_up(error)
        except Exception as error:
            self._give_up(Bug(f"{type(error).__name__}: {error}"))
        finally:
            self._run.sharing.leave(self.name)
            self._run.say(None)
            self.over = True

    @property
    def drawing(self) -> bool:
        """Whether it may still say something that counts."""
        return not self.over and self._ready and not self.outrun

    @property
    def outrun(self) -> bool:
        """Whether others have drawn all that it is at."""
        return all(one.over for one in self.taken) and any(one.drawn_by != self.name for one in self.taken)

    def _readied(self) -> bool:
        """What it takes meanwhile, others would have to wait for."""
        self._ready = False
        while not self._ready and not self._run.stopping:
            try:
                self.worker.ready()
                self._ready = True
            except Died as died:
                self._lost((), died)
        return self._ready

    @property
    def _seconds(self) -> float:
        return SECONDS_OF_WORK if self.plan.setup.placement == "resident" else SECONDS_OF_OFFLOAD

    def _serve(self, taken: Sequence[Taken]) -> None:
        began = time.monotonic()
        try:
            self._draw(taken)
        except Died as died:
            self._lost(taken, died)
        except BaseException as error:
            self._run.sharing.give_back(self.name, taken)
            # else it was cancelled from here: the run is stopped, or another was faster
            if not self._run.stopping and not isinstance(error, Cancelled):
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
                self.plan = fallen_back(self.plan, event.after)  # the others go on as planned
            if one is not None and isinstance(event, (Decoded, Failed)):
                self._deaths = 0
                if not self._run.sharing.is_first(one, event.index, self.name):
                    continue  # drawn before its worker died, or by another that was faster
            elif one is not None and one.by[-1:] != [self.name]:
                continue  # another draws it too: of two that count steps, one is heard
            self._run.say(event)
            if one is not None and one.over:
                self._run.sharing.finished(one)
                self._run.outrun(one)
            if self._run.stopping or self.outrun:  # it came before the worker had anything to cancel
                self.worker.cancel()

    def _begun(self, taken: Sequence[Taken]) -> Mapping[int, bytes]:
        """The last steps that were kept, by another run or by a worker that died since."""
        steps = enumerate(one.kept or self._run.kept.get(one.batch[0], b"") for one in taken)
        return {place: step for place, step in steps if step}

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
        self._run.sharing.give_back(self.name, [one for one in left if not one.over])
        if self._deaths >= DEATHS:
            raise died.error
        self._run.say(
            Warned(worker=self.name, code="worker-died", message=f"{self.name}: {died.error.message}; it starts again")
        )

    def _fail(self, one: Taken, error: SdcliError) -> None:
        number, jobs = one.batch
        for job in jobs:
            if self._run.sharing.is_first(one, job.index, self.name):
                self._run.say(Failed(worker=self.name, batch=number, index=job.index, error=error.to_json()))
        self._run.sharing.finished(one)

    def _give_up(self, error: SdcliError) -> None:
        if self._run.sharing.left:
            self._run.error = error
            message = f"{self.name} is left out from here on: {show(error.message, 400)}"
            self._run.say(Warned(worker=self.name, code=LEFT_OUT, message=message))


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
