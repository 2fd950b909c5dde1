"""The engines, by name. A plan goes in, events come out; heavy libraries are imported only when one runs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, Self

from sdcli.draw import turns
from sdcli.events import Event
from sdcli.machine.hardware import Hardware
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan


class Engine(Protocol):
    """Draws one plan after another, and keeps what is loaded while the next one needs the same."""

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        """`kept`: of batches that were begun in another process, the last step it kept."""

    def without_own(self, hardware: Hardware) -> Hardware:
        """The hardware as the next plan should see it: with this engine's memory counted as free."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class InTurns:
    """An engine, of a run whose images have several sets of weights too."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        yield from turns.run(self._engine.run, plan, batches, kept)

    def without_own(self, hardware: Hardware) -> Hardware:
        return self._engine.without_own(hardware)

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def engine(name: str = "local") -> Engine:
    engine: Engine = importlib.import_module(f"sdcli.draw.{name}").Engine()
    return InTurns(engine)
