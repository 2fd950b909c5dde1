"""Engines in a process of their own: `python -m sdcli.workers.child`.

Orders come on stdin, a line of JSON each; events go to stdout as events.write writes them, and after each order a line
that says how it ended and which models are held now. When stdin ends the process does, whatever it is at.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from sdcli import __version__, events, schema
from sdcli.errors import Bug, Cancelled, DeviceUnusable, OutOfMemory, SdcliError
from sdcli.events import Decoded, Degraded, Event
from sdcli.plan.batches import Batch, missing
from sdcli.plan.plan import Plan
from sdcli.plan.upscaling import UpscalePlan

if TYPE_CHECKING:
    from sdcli.draw.engines import Engine


class Orders:
    """What there is to draw, and what of it is no longer wanted: read in a thread of its own while the engine draws."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self._waiting.get()

    def cancelled(self, number: int) -> bool:
        return number in self._cancelled

    def _read(self) -> None:
        for line in self._stream:
            order = json.loads(line)
            if "cancel" in order:
                self._cancelled.add(order["cancel"])
            else:
                self._waiting.put(order)
        os._exit(0)  # nobody is there to draw for


class Models:
    """An engine for each model that is held; who gives the orders says which of them have to go."""

    def __init__(self, kind: str) -> None:
        from sdcli.draw.engines import engine

        engine(kind).close()  # without such an engine there is nothing to wait for
        self._new = partial(engine, kind)
        self._engines: dict[str, Engine] = {}
        self.device = 0  # bytes that a GPU would regain

    @property
    def held(self) -> list[str]:
        return list(self._engines)

    def run(
        self, plan: Plan, batches: Sequence[Batch], kept: Mapping[int, bytes] | None = None
    ) -> Generator[Event, None, None]:
        """Where memory runs out although all was to fit, the other models go, and what is missing is drawn anew: what
        else is loaded never moves a pixel."""
        there: set[int] = set()
        try:
            crowded = yield from self._unless_crowded(plan, batches, kept, there)
            if crowded:
                self.drop(self.held)
                yield from self._engine(plan).run(plan, missing(batches, there), kept)
        except GeneratorExit:
            raise
        except BaseException:  # it has freed all it had
            self.drop([plan.model.name])
            raise
        finally:
            self._measure(plan)

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            if (engine := self._engines.pop(name, None)) is not None:
                engine.close()

    def _unless_crowded(
        self, plan: Plan, batches: Sequence[Batch], kept: Mapping[int, bytes] | None, there: set[int]
    ) -> Generator[Event, None, bool]:
        """Whether memory ran out beside other models; the images that are `there` by then count."""
        happening = self._engine(plan).run(plan, batches, kept)
        with contextlib.closing(happening):  # type: ignore[type-var]  # a generator, as every engine's is
            try:
                for event in happening:
                    if isinstance(event, Degraded) and len(self._engines) > 1:
                        return True
                    if isinstance(event, Decoded):
                        there.add(event.index)
                    yield event
            except OutOfMemory:
                if len(self._engines) == 1:
                    raise
                return True
        return False

    def _engine(self, plan: Plan) -> Engine:
        if plan.model.name not in self._engines:
            self._engines[plan.model.name] = self._new()
        return self._engines[plan.model.name]

    def _measure(self, plan: Plan) -> None:
        if plan.hardware.kind != "cpu":
            nothing = replace(plan.hardware, free=0, ram_free=0)
            self.device = max([engine.without_own(nothing).free for engine in self._engines.values()], default=0)


def main() -> None:
    answers = own_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who gives the orders
    try:
        _serve(Orders(sys.stdin.buffer), answers)
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # the thread that reads stdin would be in the way of Python's own end


def _serve(orders: Orders, answers: IO[bytes]) -> None:
    models = Models(sys.argv[1])
    for order in orders:
        error = _draw(models, order, orders, answers)
        ended = {"ended": order["draw"], "error": error and error.to_json()}
        answers.write(json.dumps({**ended, "held": models.held, "device": models.device}).encode() + b"\n")
        answers.flush()


def _draw(models: Models, order: dict[str, Any], orders: Orders, answers: IO[bytes]) -> SdcliError | None:
    """Draws the order's batches; what is loaded stays for the next order, also when this one is cancelled."""
    try:
        happening = _happening(models, order)
        for event in happening:
            events.write(event, answers)
            answers.flush()
            if orders.cancelled(order["draw"]):
                happening.close()
                return Cancelled("cancelled")
    except SdcliError as error:
        return error
    except Exception as error:
        return Bug(f"{type(error).__name__}: {error}")
    return None


def _happening(models: Models, order: dict[str, Any]) -> Generator[Event, None, None]:
    if "enlarge" in order:
        from sdcli.draw import local

        yield from local.enlarge(schema.from_json(UpscalePlan, order["enlarge"], whole=True))
        return
    plan = schema.from_json(Plan, order["plan"], whole=True)
    if plan.version not in ("", __version__):  # it was exchanged since the run began
        raise DeviceUnusable(f"sdcli is {__version__} there, and {plan.version} here", hint="the same command again")
    if order.get("try"):
        from sdcli.asking import planning

        planning.try_out(plan)
        return
    models.drop(order["drop"])
    kept = {int(number): base64.b64decode(step) for number, step in order["kept"].items()}
    yield from models.run(plan, [(number, plan.batch(number)) for number in order["batches"]], kept)


def own_stdout() -> IO[bytes]:
    """The process's stdout for answers alone: whatever a library prints goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
