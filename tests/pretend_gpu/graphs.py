"""torch.cuda.CUDAGraph of a pretend GPU: what is called while it captures is done again, into the same memory, at every
replay. Torch's own context manager for it, torch.cuda.graph, runs as it is."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tests.pretend_gpu.tensors import Machine, NoMode
from tests.pretend_gpu.trees import leaves, map_tensors, tensors, tree_map

POOLS = itertools.count(1)


@dataclass(frozen=True)
class Slot:
    """The result of a recorded call, by number."""

    number: int


class Place:
    """Memory that a graph reads or writes by its address alone: it does not keep it."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = weakref.ref(tensor.untyped_storage())
        self._form = tensor.storage_offset(), tensor.shape, tensor.stride()
        self._like = {"dtype": tensor.dtype, "device": tensor.device}

    def there(self) -> Tensor | None:
        storage = self._storage()
        return None if storage is None else torch.empty(0, **self._like).set_(storage, *self._form)  # type: ignore[call-overload, no-any-return]

    def read(self) -> Tensor:
        tensor = self.there()
        if tensor is None:
            raise RuntimeError("a replay reads memory that was freed since the graph was captured")
        return tensor.detach()


@dataclass(frozen=True)
class Call:
    func: Callable[..., Any]
    args: Any
    kwargs: Any
    results: tuple[int | None, ...]  # numbers of the tensors that it made; None: one that was there before


class Recording:
    """The calls of one capture."""

    def __init__(self, machine: Machine, pool: int) -> None:
        self.machine, self.pool = machine, pool
        self.calls: list[Call] = []
        self.kept: dict[int, Place] = {}  # results that outlive the capture
        self._numbers = WeakIdKeyDictionary()
        self._next = itertools.count()

    def add(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """`args` as they were given, `result` on the numbers."""
        given = {id(self.machine.inner(value)) for value in tensors(args, kwargs)}
        stored_args, stored_kwargs = map_tensors(self._stored, (args, dict(kwargs)))
        numbers = tuple(self._numbered(value, given) for value in leaves(result))
        self.calls.append(Call(func, stored_args, stored_kwargs, numbers))

    def _stored(self, value: Tensor) -> Any:
        if not self.machine.is_here(value) and not value.ndim:
            return value.clone()  # a number, part of the call
        inner = self.machine.inner(value)
        number = self._numbers.get(inner)
        return Place(inner) if number is None else Slot(number)

    def _numbered(self, value: Any, given: set[int]) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) in given:
            if value not in self._numbers:
                raise NotImplementedError("a capture that writes into memory outside of it")
            return None
        self._numbers[value] = number = next(self._next)
        return number

    def end(self) -> None:
        """Nothing was computed yet: what outlives the capture holds no numbers before a replay."""
        for inner, number in self._numbers.items():
            self.kept[number] = Place(inner)
            if inner.is_floating_point() and not inner.is_meta:
                inner.fill_(float("nan"))

    def replay(self) -> None:
        made: dict[int, Tensor] = {}
        blank = self.machine.blank  # then only whether all that is read is still there

        def given(value: Any) -> Any:
            if isinstance(value, Slot):
                return None if blank else made[value.number]
            return value.read() if isinstance(value, Place) else value

        with NoMode():
            for call in self.calls:
                args, kwargs = tree_map(given, (call.args, call.kwargs))
                if blank:
                    continue
                for number, value in zip(call.results, leaves(call.func(*args, **kwargs)), strict=True):
                    if number is not None:
                        made[number] = value
            for number, place in self.kept.items():
                target = place.there()
                if target is not None and number in made:
                    target.copy_(made[number])


class PretendGraph:
    _machine: Machine

    def __init__(self, keep_graph: bool = False) -> None:
        self._pool = next(POOLS)
        self._recording: Recording | None = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
        if self._machine.recording is not None or self._recording is not None:
            raise RuntimeError("This CUDAGraph instance already owns a captured graph, or another capture is underway.")
        if not self._machine.stream:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        self._recording = self._machine.recording = Recording(self._machine, self._pool)

    def capture_end(self) -> None:
        recording, self._machine.recording = self._machine.recording, None
        if recording is None or recording is not self._recording:
            raise RuntimeError("capture_end was called without a capture")
        if self._machine.broken:
            self._machine.broken, self._recording = False, None
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        recording.end()

    def replay(self) -> None:
        if self._recording is None or self._machine.recording is not None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        self._machine.traffic.launches["replay"] += 1
        self._recording.replay()

    def reset(self) -> None:
        self._recording = None
        for memory in self._machine.memories:
            memory.allocator.release(self._pool)

    def pool(self) -> tuple[int, int]:
        return (0, self._pool)

    def __del__(self) -> None:
        self.reset()


def graphs_of(machine: Machine) -> type[PretendGraph]:
    return type("CUDAGraph", (PretendGraph,), {"_machine": machine})
