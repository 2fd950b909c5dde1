"""torch.cuda, torch.xpu and torch.mps, answered for pretend GPUs: who asks about devices, memory, streams or events
believes in them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.pretend_gpu.device import Device
from tests.pretend_gpu.graphs import graphs_of
from tests.pretend_gpu.tensors import Machine

GENERATOR = torch.Generator


class PretendGenerator(GENERATOR):
    """Draws the CPU's numbers, and says that it is where it was asked to be."""

    def __new__(cls, device: Any = "cpu") -> PretendGenerator:
        made: PretendGenerator = super().__new__(cls, "cpu")
        made.__dict__["where"] = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.__dict__["where"]  # type: ignore[no-any-return]


class Stream:
    """Its work is done as soon as it is asked for; memory handed out under it stays its own."""

    number = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        Stream.number += 1
        self.stream_id = self.number
        self.device = device

    def synchronize(self) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event

    def query(self) -> bool:
        return True


def patches(machine: Machine, devices: list[Device]) -> dict[str, Any]:
    """torch.cuda's functions by name; torch.xpu has most of them too."""
    main = Stream()
    main.stream_id = 0
    state = {"stream": main}

    def number_of(device: Any = None) -> int:
        if device is None:
            return machine.current
        made = machine.full(device)
        if made.type != machine.kind or not 0 <= (made.index or 0) < len(devices):
            raise RuntimeError(f"CUDA error: invalid device ordinal {device}")
        return made.index or 0

    def allocator(device: Any = None) -> Any:
        return machine.memories[number_of(device)].allocator

    def count(why: str) -> None:
        machine.refuse_to_capture(why)
        machine.traffic.waits[why] += 1

    def set_sync_debug_mode(mode: int | str) -> None:
        machine.warns = mode in (1, "warn")

    class Event:
        def __init__(self, enable_timing: bool = False, **_: Any) -> None:
            self.seconds = 0.0

        def record(self, stream: Any = None) -> None:
            self.seconds = time.perf_counter()

        def synchronize(self) -> None:
            count("event")

        def elapsed_time(self, other: Event) -> float:
            return (other.seconds - self.seconds) * 1000

        def query(self) -> bool:
            return True

        def wait(self, stream: Any = None) -> None:
            pass

    class Waiting(Stream):
        def synchronize(self) -> None:
            count("stream")

    @contextlib.contextmanager
    def stream(new: Any) -> Iterator[None]:
        before, number = state["stream"], machine.stream
        if new is not None:
            state["stream"], machine.stream = new, new.stream_id
        try:
            yield
        finally:
            state["stream"], machine.stream = before, number

    @contextlib.contextmanager
    def on_device(device: Any) -> Iterator[None]:
        before, machine.current = machine.current, number_of(device)
        try:
            yield
        finally:
            machine.current = before

    def properties(device: Any = None) -> Any:
        asked = devices[number_of(device)]
        return SimpleNamespace(
            name=asked.name, total_memory=asked.total, major=asked.capability[0], minor=asked.capability[1],
            multi_processor_count=24, uuid=asked.uuid.removeprefix("GPU-"), is_integrated=0, is_integrated_gpu=False,
            driver_version="1.6",
        )  # fmt: skip

    def empty_cache() -> None:
        for memory in machine.memories:
            memory.allocator.empty_cache()

    def set_fraction(fraction: float, device: Any = None) -> None:
        number = number_of(device)
        allocator(number).limit = min(devices[number].room, int(fraction * devices[number].total))

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        number = number_of(device)
        return devices[number].room - allocator(number).reserved.now, devices[number].total

    def reset_peaks(device: Any = None) -> None:
        allocator(device).allocated.reset()
        allocator(device).reserved.reset()

    def choose(device: Any) -> None:
        machine.current = number_of(device)

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: any(memory.allocator.requests for memory in machine.memories),
        "is_bf16_supported": lambda *_, **__: devices[machine.current].capability >= (8, 0),
        "device_count": lambda: len(devices),
        "current_device": lambda: machine.current,
        "set_device": choose,
        "device": on_device,
        "get_device_name": lambda device=None: devices[number_of(device)].name,
        "get_device_capability": lambda device=None: devices[number_of(device)].capability,
        "get_device_properties": properties,
        "mem_get_info": mem_get_info,
        "memory_allocated": lambda device=None: allocator(device).allocated.now,
        "max_memory_allocated": lambda device=None: allocator(device).allocated.peak,
        "memory_reserved": lambda device=None: allocator(device).reserved.now,
        "max_memory_reserved": lambda device=None: allocator(device).reserved.peak,
        "reset_peak_memory_stats": reset_peaks,
        "host_memory_stats": lambda: {
            "allocated_bytes.current": machine.pinned.now, "allocated_bytes.peak": machine.pinned.peak
        },
        "set_per_process_memory_fraction": set_fraction,
        "empty_cache": empty_cache,
        "ipc_collect": lambda: None,
        "synchronize": lambda device=None: count("synchronize"),
        "set_sync_debug_mode": set_sync_debug_mode,
        "Event": Event,
        "Stream": Waiting,
        "stream": stream,
        "current_stream": lambda device=None: state["stream"],
        "default_stream": lambda device=None: main,
        "manual_seed_all": lambda seed: None,
        "CUDAGraph": graphs_of(machine),
    }  # fmt: skip


def apple(machine: Machine) -> dict[str, Any]:
    """torch.mps's functions by name."""

    def allocator() -> Any:
        return machine.memories[0].allocator

    return {
        "device_count": lambda: 1,
        "synchronize": lambda: machine.wait("synchronize"),
        "empty_cache": lambda: allocator().empty_cache(),
        "current_allocated_memory": lambda: allocator().allocated.now,
        "driver_allocated_memory": lambda: allocator().reserved.now,
        "recommended_max_memory": lambda: allocator().limit,
        "manual_seed": lambda seed: None,
    }


def answers(machine: Machine, devices: list[Device]) -> dict[str, Any]:
    """Those that torch has for this kind of device."""
    if machine.kind == "mps":
        return apple(machine)
    module = torch.get_device_module(machine.kind)
    return {name: value for name, value in patches(machine, devices).items() if hasattr(module, name)}


@contextlib.contextmanager
def answered(machine: Machine, devices: list[Device]) -> Iterator[None]:
    module = torch.get_device_module(machine.kind)
    with contextlib.ExitStack() as stack:
        for name, value in answers(machine, devices).items():
            stack.enter_context(mock.patch.object(module, name, value))
        if machine.kind == "cuda":  # asked for by torch.cuda.graph; of a build for CPUs it is not part
            stack.enter_context(mock.patch.object(torch._C, "_host_emptyCache", lambda: None, create=True))
            stack.enter_context(mock.patch.object(torch.cuda.graph, "default_capture_stream", None))
        if machine.kind == "mps":
            stack.enter_context(mock.patch.object(torch.backends.mps, "is_available", lambda: True))
        if devices and devices[0].backend == "rocm":
            stack.enter_context(mock.patch.object(torch.version, "hip", "7.2"))
        stack.enter_context(mock.patch.object(torch, "Generator", PretendGenerator))
        # Its binding takes a stream of torch's own only, before any mode is asked.
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None))
        yield


def names(kind: str = "cuda") -> Mapping[str, Any]:
    """What is answered, for the test that holds it against torch."""
    return apple(Machine(kind, [])) if kind == "mps" else patches(Machine(kind, []), [])
