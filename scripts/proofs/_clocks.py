"""`sdcli serve` that also notes what its queue costs each request: seconds from when it had a place in line, and the
worker nothing to do, until the worker had its order. Called with the file to write them to, then sdcli's own words."""

from __future__ import annotations

import runpy
import sys
import time
from typing import Any

from sdcli.serve.desk import Desk
from sdcli.workers.worker import Worker


def main() -> None:
    path = sys.argv.pop(1)
    with open(path, "w", encoding="utf-8", buffering=1) as file:
        _note(file)
        runpy.run_module("sdcli", run_name="__main__", alter_sys=True)


def _note(file: Any) -> None:
    draw, write, ordered = Desk._draw, Worker._write, [0.0]
    free = [time.monotonic()]

    def noted_write(worker: Worker, order: Any) -> None:
        write(worker, order)
        if "draw" in order:
            ordered[0] = time.monotonic()

    def noted_draw(desk: Desk, ticket: Any) -> None:
        before = ordered[0]
        draw(desk, ticket)
        if ordered[0] != before:  # it may have been cancelled first
            file.write(f"{ordered[0] - max(ticket.waiting_since, free[0]):.6f}\n")
        free[0] = ticket.over_since or time.monotonic()

    Desk._draw, Worker._write = noted_draw, noted_write  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
