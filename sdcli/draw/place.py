"""Where each component's weights are while another works: the placement slot, carried out.

Components move whole between phases, or (group-offload) a layer at a time by diffusers' hooks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from sdcli.draw import (
    adapters,
    attention,
    captured,
    compiled,
    control,
    decode,
    devices,
    graphs,
    load,
    regional,
    residual,
)
from sdcli.events import Loaded
from sdcli.models.model import NETS, Model, role
from sdcli.plan.plan import Setup
from sdcli.plan.techniques import placement
from sdcli.plan.techniques.attention import of_vae as vae_attention
from sdcli.plan.techniques.vae_dtype import effective


class Components:
    """One model's components under one setup. `ready` loads components; `use` puts one on its device for a block."""

    def __init__(self, model: Model, setup: Setup) -> None:
        self.model = model
        self.setup = setup
        self.device = torch.device(setup.device)
        self.dtype = load.DTYPES[setup.dtype]
        self._modules: dict[str, Any] = {}
        self._offloaded: dict[str, Offloaded] = {}
        self.regions: regional.Regions | None = None  # of the UNet, where its blocks are compiled

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def device_of(self, name: str) -> torch.device:
        """Where the component computes."""
        return torch.device("cpu") if name == "vae" and self.setup.vae == "cpu" else self.device

    def dtype_of(self, name: str) -> torch.dtype:
        return load.DTYPES[effective(self.setup)] if name == "vae" else self.dtype

    def ready(self, names: Sequence[str]) -> Iterator[Loaded]:
        """Exactly these components: drops all others, then loads the missing ones."""
        self.drop(*(name for name in self._modules if name not in names))
        for name in names:
            if name not in self._modules:
                started = time.perf_counter()
                size = self._load(name)
                seconds = time.perf_counter() - started
                yield Loaded(component=name, bytes=size, seconds=seconds)

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The component on its device. After a failure it may have left more there, so it has to be dropped then."""
        offloaded = self._offloaded.get(name)
        try:
            if offloaded is not None:
                offloaded.onload()
            yield self._modules[name]
        finally:
            if offloaded is not None:
                offloaded.offload()
        devices.functions(self.device).empty_cache()

    @contextmanager
    def exact(self, vae: Any) -> Iterator[Any]:
        """The VAE in fp32. A packed or compiled one cannot be widened: a plain one takes its place meanwhile."""
        if self.setup.execution in ("eager", "graph", "compile"):
            with decode.in_fp32(vae) as widened:
                yield widened
            return
        plain = self._plain("vae", torch.float32, channels_last=True)
        decode.set_tiles(plain, self.setup.vae)
        yield plain

    @contextmanager
    def encoder(self, name: str) -> Iterator[Any]:
        """A VAE that encodes. A compiled one cannot: a plain one does it meanwhile."""
        if self.setup.execution != "openvino":
            with self.use(name) as vae:
                yield vae
            return
        plain = self._plain(name, self.dtype_of(name), channels_last=True)
        decode.set_tiles(plain, self.setup.vae)
        yield plain

    def drop(self, *names: str) -> None:
        """Frees components; they can be loaded again."""
        modules = [self._modules.pop(name, None) for name in names]
        for name in names:
            self._offloaded.pop(name, None)
        if "unet" in names:
            self.regions = None
        if any(module is not None for module in modules):
            modules.clear()
            gc.collect()  # modules hold reference cycles
            devices.functions(self.device).empty_cache()

    def drop_all(self) -> None:
        """Frees everything, and what a load that failed halfway left behind."""
        self.drop(*self._modules)
        gc.collect()
        devices.functions(self.device).empty_cache()

    def _load(self, name: str) -> int:
        if self.setup.execution == "openvino" and name in ("unet", "vae"):
            return self._compiled(name)
        streamed = placement.streamed(self.setup.placement, name)
        parked = self.setup.placement in placement.PARKED_ON_HOST and self.device_of(name) == self.device
        kind = role(name)
        images = kind in ("unet", "vae", *NETS)
        enlarging = kind == "upscaler"
        choice = vae_attention(self.setup) if name == "vae" else self.setup.attention
        attend = attention.attend(choice, self.setup.threads, self.setup.blocks)
        filled = load.load(
            name, self.model.components[name], dtype=self.dtype_of(name),
            device="cpu" if parked else self.device_of(name),
            channels_last=(images or enlarging) and self.device.type != "mps",
            added=adapters.additions(name, self.model, self.setup.adapters),
            storage=torch.float8_e4m3fn if kind == "unet" and self.setup.storage == "fp8" else None,
            attend=attend if images and self.setup.execution == "packed" else None,
        )  # fmt: skip
        if images and kind != "t2i_adapter":  # that has no attention
            named = name == "unet" and self.model.sees_references
            attention.set_attention(filled.module, choice, attend, named=named)
        if kind == "unet" and self.setup.execution != "packed":  # packed ones do no such work either
            residual.lighten(filled.module)
        if kind in NETS and kind != "t2i_adapter":
            control.embedded_once(filled.module)
        if name == "vae":
            decode.set_tiles(filled.module, self.setup.vae)
        if streamed:
            stream_layers(filled.module, self.device)
        elif parked:
            self._offloaded[name] = Offloaded(filled.module, self.device)
        if kind == "unet" and self.setup.execution == "compile":
            self.regions = regional.Regions(filled.module)
        graphed = kind == "unet" and self.setup.execution == "graph"
        self._modules[name] = captured.Captured(filled.module, self.device) if graphed else filled.module
        return filled.bytes

    def _compiled(self, name: str) -> int:
        """OpenVINO's in place of the component; diffusers' is loaded only where it was not converted before."""
        component, dtype = self.model.components[name], self.dtype_of(name)
        graph = graphs.graph_of(name, component, self.setup.adapters, dtype, partial(self._plain, name, dtype))
        empty = load.build(name, component.config)
        if name == "unet":
            self._modules[name] = compiled.Unet(empty, graph, dtype, self.setup.threads)
        else:
            self._modules[name] = compiled.vae(empty, compiled.Decoder(graph, dtype, self.setup.threads))
            decode.set_tiles(self._modules[name], self.setup.vae)
        return graph.weights.stat().st_size

    def _plain(self, name: str, dtype: torch.dtype, *, channels_last: bool = False) -> nn.Module:
        """diffusers' module, its weights by default laid out as OpenVINO shares them."""
        module: nn.Module = load.load(
            name, self.model.components[name], dtype=dtype, device="cpu", channels_last=channels_last,
            added=adapters.additions(name, self.model, self.setup.adapters),
        ).module  # fmt: skip
        return module


class Offloaded:
    """A module whose weights stay on the host and are copied to the device while it computes."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._weights = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]

    def onload(self) -> None:
        for tensor, host in self._weights:
            tensor.data = host.to(self._device)

    def offload(self) -> None:
        for tensor, host in self._weights:
            tensor.data = host


def stream_layers(module: nn.Module, device: torch.device) -> None:
    """Each layer's weights reach the device just before it computes; on a GPU the next layer's follow meanwhile."""
    from diffusers.hooks import apply_group_offloading

    streams = devices.functions(device).streams
    apply_group_offloading(
        module, onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level",
        non_blocking=streams, use_stream=streams, record_stream=streams,
    )  # fmt: skip
