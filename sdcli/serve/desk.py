"""Where requests are drawn one after another: a thread that feeds one device's worker and records what comes of it."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import chain

from sdcli.errors import Bug, Cancelled, CannotWrite, DoesNotFit, SdcliError, Terminated, from_json
from sdcli.events import Decoded, Event, Failed, Planned
from sdcli.files import REAL, Files
from sdcli.machine.environment import environment
from sdcli.models.fingerprint import fingerprints
from sdcli.models.model import Model
from sdcli.plan.batches import missing
from sdcli.record import remembering, report, runs
from sdcli.record.report import Folding
from sdcli.record.store import store
from sdcli.serve import preparing
from sdcli.serve.line import Line, too_late
from sdcli.serve.ticket import Ticket
from sdcli.workers.worker import Died, Worker

TRIES = 2  # of a batch that ended its worker: the second that dies of it is the last


class Desk(threading.Thread):
    """Serves a line until it is closed."""

    def __init__(
        self, line: Line, worker: Worker, on_over: Callable[[Ticket], None], idle: float | None = None,
        first: Callable[[], None] = lambda: None, files: Files = REAL,
    ) -> None:  # fmt: skip
        """`idle`: seconds without a request after which the worker gives its memory back; `first` is done before
        anything is drawn; `files`: how images and records are written."""
        super().__init__(name="desk", daemon=True)
        self.idle = idle
        self._first = first
        self._files = files
        self.line = line
        self.worker = worker
        self.drawing: Ticket | None = None
        self._on_over = on_over
        self._weights: dict[str, Mapping[str, str]] = {}  # of models that the worker holds

    def run(self) -> None:
        self._first()
        while not self.line.closed:
            ticket = self.line.take(self.idle)
            if ticket is None:
                self.worker.close()
                continue
            self.drawing = ticket
            try:
                self._draw(ticket)
            except Exception as error:  # whatever it is, those who wait behind it are served
                ticket.end("failed", Bug(f"{type(error).__name__}: {error}"))
            self.drawing = None
            self._on_over(ticket)
        self.worker.close()

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
        ticket.state, ticket.drawn_since = "drawing", (began := time.monotonic())
        ticket.plan = preparing.settled(ticket.plan, self.worker)
        if ticket.plan.model.name not in self.worker.held:
            self._weights.pop(ticket.plan.model.name, None)
        with contextlib.closing(self._events(ticket)) as events:
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
        if recorded:  # what is remembered nobody waits for
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
            if isinstance(event, (Decoded, Failed)):
                if event.index in there:
                    continue
                there.add(event.index)
            yield event
            if ticket.cancelled is not None:  # it came before the worker had anything to cancel
                self.worker.cancel()


def _since(began: float) -> float:
    return time.monotonic() - began
