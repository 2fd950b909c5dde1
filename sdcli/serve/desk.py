"""Where requests are drawn one after another: a thread that feeds one device's worker and records what comes of it. A
server has one for each of its devices, and all of them one line."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import chain

from sdcli.errors import Bug, Cancelled, CannotWrite, DoesNotFit, SdcliError, Terminated, from_json
from sdcli.events import Decoded, Done, Event, Failed, Planned
from sdcli.files import REAL, Files
from sdcli.machine.environment import environment
from sdcli.machine.several import Seat
from sdcli.models.fingerprint import fingerprints
from sdcli.models.model import Model
from sdcli.plan.batches import Batch, missing
from sdcli.plan.plan import Plan
from sdcli.plan.several import drawn_by
from sdcli.record import remembering, report, runs
from sdcli.record.report import Folding
from sdcli.record.store import store
from sdcli.serve.line import Line, Suits, too_late
from sdcli.serve.preparing import Preparing
from sdcli.serve.shared import Shared
from sdcli.serve.ticket import Ticket
from sdcli.workers.worker import Died, Worker

POLL = 0.5  # seconds between two looks at what others draw
TRIES = 2  # of a batch that ended its worker: the second that dies of it is the last


class Desk(threading.Thread):
    """Serves a line until it is closed."""

    def __init__(
        self, seat: Seat, line: Line, worker: Worker, on_over: Callable[[Ticket], None], preparing: Preparing,
        idle: float | None = None, first: Callable[[Desk], None] = lambda desk: None, files: Files = REAL,
    ) -> None:  # fmt: skip
        """`idle`: seconds without a request after which the worker gives its memory back; `first` is done before
        anything is drawn; `files`: how images and records are written."""
        super().__init__(name=seat.name, daemon=True)
        self.device = seat.hardware.device
        self.idle = idle
        self._preparing = preparing
        self._first = first
        self._files = files
        self.line = line
        self.worker = worker
        self.drawing: Ticket | None = None
        self._on_over = on_over
        self._weights: dict[str, Mapping[str, str]] = {}  # of models that the worker holds

    def run(self) -> None:
        self._first(self)
        while not self.line.closed:
            taken = self.line.take(self.idle, self)
            if taken is None:
                self.worker.close()
            elif isinstance(taken, Shared):
                self._help(taken)
            else:
                self._serve(taken)
        self.worker.close()

    def _serve(self, ticket: Ticket) -> None:
        self.drawing = ticket
        try:
            self._draw(ticket)
        except Exception as error:  # whatever it is, those who wait behind it are served
            ticket.end("failed", Bug(f"{type(error).__name__}: {error}"))
        self.drawing = None
        self._on_over(ticket)

    def load(self, plan: Plan) -> bool:
        """Leaves its model in memory, if it can be drawn with here."""
        if drawn_by(plan, self.name) is None:
            return False
        self._preparing.loaded(plan, self.worker, self.name)
        return True

    def suits(self, ticket: Ticket) -> Suits | None:
        plan = ticket.plan
        if not plan.workers:  # it is the only one
            return Suits()
        own = next((worker for worker in plan.workers if worker.name == self.name), None)
        if own is None:
            return None
        held = self.worker.held
        return Suits(gpu=own.hardware.kind != "cpu", held=plan.model.name in held, room=-len(held))

    def cancel(self, ticket: Ticket, error: SdcliError) -> None:
        """Ends it after the step it is at, if it is the one being drawn; the first who cancels it says why."""
        ticket.cancelled = ticket.cancelled or error
        if self.drawing is ticket:
            self.worker.cancel()

    def end_if_stuck(self) -> None:
        """Ends a worker that has said nothing for much longer than a step takes; another takes its place."""
        ticket = self.drawing
        if ticket is not None:
            self.worker.end_if_stuck(ticket.plan)

    def _draw(self, ticket: Ticket) -> None:
        if ticket.cancelled is not None:
            return ticket.end("cancelled", ticket.cancelled)
        if too_late(ticket):
            message = "nobody waits for it any more: its time was over in the queue"
            return ticket.end("failed", DoesNotFit(message, hint="the same request with a longer timeout", late=True))
        ticket.state, ticket.drawn_since, ticket.device = "drawing", (began := time.monotonic()), self.name
        ticket.plan = self._preparing.settled(ticket.plan, self.worker, self.name)
        if ticket.plan.model.name not in self.worker.held:
            self._weights.pop(ticket.plan.model.name, None)
        drawing = self._shared(ticket) if ticket.plan.workers else self._events(ticket)
        with contextlib.closing(drawing) as events:
            planned = next(events)  # the worker has its order: what follows here holds nobody up
            gc.collect(1)
            around = environment(ticket.plan.hardware)
            clock = partial(_since, began)
            folding = Folding(started=runs.now(), run=ticket.destination.run, clock=clock, environment=around)
            error = self._drain(chain([planned], events), ticket, folding, around)
            folding.beside = self.worker.beside
        finished = folding.report(error)
        recorded = ticket.destination.records.exists()
        with contextlib.suppress(CannotWrite):
            if recorded:
                report.write(finished, ticket.destination.records / "report.json", self._files)
        ticket.report = report.to_json(finished, ticket.destination.folder)
        if error is None and finished.error is not None:  # some of its images
            error = from_json(dict(finished.error))
        state = "cancelled" if isinstance(error, (Cancelled, Terminated)) else "failed" if error is not None else "done"
        ticket.end(state, error)
        if recorded and set(ticket.work) <= {self.name}:  # else it is not of this device; nobody waits for it
            remembering.remember(ticket.plan, finished)

    def _weights_of(self, model: Model) -> Mapping[str, str]:
        """Looked at once: what a worker has loaded does not change with its files."""
        if model.name not in self._weights:
            self._weights[model.name] = fingerprints(model)
        return self._weights[model.name]

    def _drain(
        self, events: Iterator[Event], ticket: Ticket, folding: Folding, around: dict[str, object]
    ) -> SdcliError | None:
        try:
            stored = store(events, ticket.destination, environment=around, files=self._files, weights=self._weights_of)
            for event in stored:
                folding(event)
                ticket.publish(event)
        except SdcliError as error:
            return error
        except Exception as error:
            return Bug(f"{type(error).__name__}: {error}")
        return None

    def _events(self, ticket: Ticket) -> Generator[Event, None, None]:
        """Of the worker; of the next one, where it dies. What it had drawn by then is not drawn again."""
        plan = ticket.plan
        there: set[int] = set()
        told = False
        for left in reversed(range(TRIES)):
            try:
                with contextlib.closing(self.worker.begun(plan, missing(plan.numbered(), there))) as happening:
                    if not told:
                        told = True
                        yield Planned(plan=plan)
                    yield from self._new(happening, ticket, there)
                return
            except Cancelled as cancelled:
                raise ticket.cancelled or cancelled from None
            except Died as died:
                if ticket.cancelled is not None:
                    raise ticket.cancelled from None
                if not left:
                    if not told:
                        yield Planned(plan=plan)
                    raise died.error from None

    def _new(self, happening: Iterator[Event], ticket: Ticket, there: set[int]) -> Iterator[Event]:
        for event in happening:
            if not _is_new(event, there):
                continue
            yield event
            if ticket.cancelled is not None:  # it came before the worker had anything to cancel
                self.worker.cancel()

    # --- where there are several desks

    def _shared(self, ticket: Ticket) -> Generator[Event, None, None]:
        """What this desk draws, and what others do that have nothing else to do. One image is drawn here, unless its
        worker dies of it."""
        shared = Shared(ticket, self.name)
        if len(ticket.plan.batches) == 1:
            ticket.plan = shared.plan(self.name)
        planned: Planned | None = Planned(plan=ticket.plan)
        there: set[int] = set()
        around: dict[str, object] = {}
        batch = shared.take(self.name)
        self.line.share(shared)
        try:
            while planned is not None or (not shared.over and ticket.cancelled is None):
                own = self._batch(shared, batch, planned) if batch is not None else self._meanwhile(shared)
                planned = None
                with contextlib.closing(own):
                    for event in chain.from_iterable((one, *shared.said()) for one in own):
                        if isinstance(event, Done):
                            around |= event.environment
                        elif _is_new(event, there):
                            yield event
                batch = shared.take(self.name)
        finally:
            shared.stopped = True
            self.line.drawn(shared)
        if len(there) < len(ticket.plan.jobs):
            raise ticket.cancelled or shared.error or Bug("less was drawn than was asked for")
        yield Done(environment=around)

    def _meanwhile(self, shared: Shared) -> Generator[Event, None, None]:
        """What others say of it. Two desks that wait for each other draw what the other could not."""
        lost = self.line.lost(self)
        if lost is not None:
            self._help(lost)
        yield from shared.said(POLL)

    def _help(self, shared: Shared) -> None:
        """Draws a batch of what another desk records."""
        batch = shared.take(self.name)
        if batch is None:
            return
        before, self.drawing = self.drawing, shared.ticket
        try:
            for event in self._batch(shared, batch):
                shared.say(event)
        except Exception as error:
            shared.failed(batch, self.name, Bug(f"{type(error).__name__}: {error}"))
        self.drawing = before

    def _batch(
        self, shared: Shared, batch: Batch, planned: Planned | None = None
    ) -> Generator[Event, None, None]:  # fmt: skip
        """Its events, behind `planned`, once the worker has its order."""
        at_work = False
        try:
            with contextlib.closing(self.worker.begun(shared.plan(self.name), [batch])) as happening:
                if planned is not None:
                    yield planned
                    planned = None
                for event in happening:
                    at_work = True
                    yield shared.heard(event, self.name)
                    if shared.stopped or shared.ticket.cancelled is not None:
                        self.worker.cancel()
            shared.finished(batch, self.name)
        except Cancelled:
            shared.finished(batch, self.name)
        except Died as died:
            if planned is not None:
                yield planned
            shared.died(batch, self.name, died.error, at_work=at_work)
            self.line.look()
        except SdcliError as error:
            shared.failed(batch, self.name, error)
            self.line.look()


def _is_new(event: Event, there: set[int]) -> bool:
    """An image counts once: its worker may have died after it was drawn, and before the others of its batch were."""
    if not isinstance(event, (Decoded, Failed)):
        return True
    new = event.index not in there
    there.add(event.index)
    return new


def _since(began: float) -> float:
    return time.monotonic() - began
