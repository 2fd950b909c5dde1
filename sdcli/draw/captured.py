"""The UNet's work as a CUDA graph: captured once, then launched as one whatever the number of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.draw import devices
from sdcli.draw.control import DOWN, MID, WITHIN


class NotCaptured(RuntimeError):
    """torch refused to capture the UNet's work, and says why. Launched layer by layer it may still compute it."""


class Captured(nn.Module):
    """Called as diffusers' UNet is. It keeps one graph, since all calls of a batch have one shape: a batch of another
    shape is captured in its place. Calls in which nothing steers it are those of one that adds nothing."""

    def __init__(self, unet: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.unet = unet
        self._device = device
        self._graph: Graph | None = None

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False, **rows: Any) -> tuple[Tensor]:
        given = {"sample": sample, "timestep": timestep, **rows}
        if self._graph is None or not self._graph.fits(given):
            self._graph = None  # first: its memory makes room for the next one's
            self._graph = Graph(self.unet, given, self._device)
        return (self._graph.replay(given),)


class Graph:
    """One call of a module for one shape of its arguments. It reads and writes the memory it was captured with: the
    module's weights, its own copies of the arguments, and a pool that is its own as long as it lives."""

    def __init__(self, module: nn.Module, given: Mapping[str, Any], device: torch.device) -> None:
        self._given = _copied(given)
        self._zero = set[str]()  # those of its own copies that are nothing but zeros
        self._graph = torch.cuda.CUDAGraph()
        side, main = devices.side_stream(device), torch.cuda.current_stream(device)
        side.wait_stream(main)
        with torch.cuda.stream(side):  # around it: torch's own stays in the stream where a capture fails
            # libraries choose kernels and take memory in a first call only
            module(**_lists_anew(self._given), return_dict=False)
            try:
                with torch.cuda.graph(self._graph, stream=side):
                    self._result: Tensor = module(**_lists_anew(self._given), return_dict=False)[0]
            except RuntimeError as error:
                reason = error.__context__ or error  # torch ends the capture, and that fails too
                raise NotCaptured(str(reason)) from error
        main.wait_stream(side)

    def fits(self, given: Mapping[str, Any]) -> bool:
        lacking = self._given.keys() - given.keys()
        same = all(name in self._given and _fixed(value) == _fixed(self._given[name]) for name, value in given.items())
        return same and lacking <= ADDED

    def replay(self, given: Mapping[str, Any]) -> Tensor:
        for name, own in self._given.items():
            if name in given:
                for mine, value in zip(_tensors(own), _tensors(given[name]), strict=True):
                    mine.copy_(value)
                self._zero.discard(name)
            elif name not in self._zero:  # nothing steers this call: what is added is nothing
                for mine in _tensors(own):
                    mine.zero_()
                self._zero.add(name)
        self._graph.replay()
        return self._result.clone()  # some samplers keep it over later steps


# Arguments that are added to what the UNet computes: left out, they are zeros.
ADDED = frozenset({DOWN, MID, WITHIN})


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.contiguous_format) if 0 in value.stride() else value.clone()
    return _each(value, _copied)


def _fixed(value: Any) -> Any:
    """What a graph was captured for: shapes, and plain numbers."""
    return value.shape if isinstance(value, Tensor) else _each(value, _fixed)


def _each(value: Any, done: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: done(one) for name, one in value.items()}
    return [done(one) for one in value] if isinstance(value, (list, tuple)) else value


def _lists_anew(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors; the UNet takes some out of a list that it is given."""
    return {name: list(value) if isinstance(value, list) else value for name, value in given.items()}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one)
