"""An engine in a process of its own: `python -m sdcli.workers.child`.

Orders come on stdin, a line of JSON each; events go to stdout as events.write writes them, and after each order a line
that says how it ended. When stdin ends the process does, whatever it is at.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from typing import IO, Any

from sdcli import __version__, events, schema
from sdcli.errors import Bug, DeviceUnusable, Interrupted, SdcliError
from sdcli.events import Event
from sdcli.plan.plan import Plan
from sdcli.plan.upscaling import UpscalePlan


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


def main() -> None:
    answers = own_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who gives the orders
    try:
        _serve(Orders(sys.stdin.buffer), answers)
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # the thread that reads stdin would be in the way of Python's own end


def _serve(orders: Orders, answers: IO[bytes]) -> None:
    from sdcli.draw.engines import engine

    with engine(sys.argv[1]) as drawing:
        for order in orders:
            error = _draw(drawing, order, orders, answers)
            answers.write(json.dumps({"ended": order["draw"], "error": error and error.to_json()}).encode() + b"\n")
            answers.flush()


def _draw(drawing: Any, order: dict[str, Any], orders: Orders, answers: IO[bytes]) -> SdcliError | None:
    """Draws the order's batches; what is loaded stays for the next order, also when this one is cancelled."""
    try:
        happening = _happening(drawing, order)
        for event in happening:
            events.write(event, answers)
            answers.flush()
            if orders.cancelled(order["draw"]):
                happening.close()
                return Interrupted("cancelled")
    except SdcliError as error:
        return error
    except Exception as error:
        return Bug(f"{type(error).__name__}: {error}")
    return None


def _happening(drawing: Any, order: dict[str, Any]) -> Generator[Event, None, None]:
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
    yield from drawing.run(plan, [(number, plan.batch(number)) for number in order["batches"]])


def own_stdout() -> IO[bytes]:
    """The process's stdout for answers alone: whatever a library prints goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
