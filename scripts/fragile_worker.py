"""A worker that takes its time, or fails: `python -P -m scripts.fragile_worker [FLAGS] fake`, in the place of
sdcli.workers.child. What it draws is what that would draw."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from sdcli.draw import fake
from sdcli.errors import OutOfMemory
from sdcli.events import Decoded, Degraded, Event, Step
from sdcli.workers import child


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--seconds", type=float, default=0.0, help="for each image")
    flags.add_argument("--step", type=float, default=0.0, help="seconds for each step")
    flags.add_argument("--poison", default="", help="a prompt it dies of")
    flags.add_argument("--full", action="store_true", help="it runs out of memory at once")
    flags.add_argument("--fallback", action="store_true", help="it falls back to decoding in tiles at once")
    flags.add_argument("engine")
    asked = flags.parse_args()
    drawn = fake.Run.events

    def events(run: fake.Run, batches: Any) -> Iterator[Event]:
        if asked.full:
            raise OutOfMemory("there is no memory left", hint="sdcli doctor")
        if asked.fallback and run.plan.setup.vae == "whole":
            yield Degraded(
                batch=0, phase="decode", step=None, before={"vae": "whole"}, after={"vae": "tile-256"},
                because="memory", changes_pixels=True,
            )  # fmt: skip
        for event in drawn(run, batches):
            if isinstance(event, Step):
                time.sleep(asked.step)
            if isinstance(event, Decoded):
                time.sleep(asked.seconds)
                if event.job.prompt == asked.poison:
                    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            yield event

    sys.argv = [sys.argv[0], asked.engine]
    with mock.patch.object(fake.Run, "events", events):
        child.main()


if __name__ == "__main__":
    main()
