"""The UNet's work as a CUDA graph: captured once, then launched as one whatever the number of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.draw import devices


class NotCaptured(RuntimeError):
    """torch refused to capture the UNet's work, and says why. Launched layer by layer it may still compute it."""


class Captured(nn.Module):
    """Called as diffusers' UNet is. It keeps one graph, since all calls of a batch have one shape: a batch of another
    shape is captured in its place."""

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
        self._graph = torch.cuda.CUDAGraph()
        side, main = devices.side_stream(device), torch.cuda.current_stream(device)
        side.wait_stream(main)
        with torch.cuda.stream(side):  # around it: torch's own stays in the stream where a capture fails
            module(**self._given, return_dict=False)  # libraries choose kernels and take memory in a first call only
            try:
                with torch.cuda.graph(self._graph, stream=side):
                    self._result: Tensor = module(**self._given, return_dict=False)[0]
            except RuntimeError as error:
                reason = error.__context__ or error  # torch ends the capture, and that fails too
                raise NotCaptured(str(reason)) from error
        main.wait_stream(side)

    def fits(self, given: Mapping[str, Any]) -> bool:
        return list(_fixed(given)) == list(_fixed(self._given))

    def replay(self, given: Mapping[str, Any]) -> Tensor:
        for own, value in zip(_tensors(self._given), _tensors(given), strict=True):
            own.copy_(value)
        self._graph.replay()
        return self._result.clone()  # some samplers keep it over later steps


def _leaves(given: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name} ")
        else:
            yield above + name, value


def _copied(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _copied(value) if isinstance(value, Mapping) else value.clone() if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def _tensors(given: Mapping[str, Any]) -> Iterator[Tensor]:
    return (value for _, value in _leaves(given) if isinstance(value, Tensor))


def _fixed(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a graph was captured for: shapes, and plain numbers."""
    return ((name, value.shape if isinstance(value, Tensor) else value) for name, value in _leaves(given))
