"""The UNet's repeated blocks, compiled by torch: a graph for every shape of block, kept on disk for later processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sdcli.draw.denoise import Conditioning
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.machine import folders, packages
from sdcli.terminal import show

BLOCKS = ("BasicTransformerBlock",)
MOST_GRAPHS = 1024  # of one kind of block: its shapes, for every size of image
FOLDER = "TORCHINDUCTOR_CACHE_DIR"


class NotCompiled(Exception):
    """torch.compile or the compiler failed; the message says how, in a line."""


class Regions:
    """One UNet's blocks. Each is compiled when it is first called with a shape that no block like it had before."""

    def __init__(self, unet: Any) -> None:
        self.blocks = [part for part in unet.modules() if type(part).__name__ in BLOCKS]
        for block in self.blocks:
            block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
        self._ready: set[tuple[torch.Size, ...]] = set()

    @torch.no_grad()
    def compile(self, unet: Any, conditioning: Conditioning, latents: Tensor, timestep: Tensor, threads: int) -> bool:
        """Calls the UNet once with each shape that a step of this batch will call it with; False if all were compiled
        before. Weights are inputs of what is compiled: nothing is kept twice."""
        before = len(self._ready)
        with _compiler(latents.device.type, threads):
            for _, sample, arguments in conditioning.inputs(latents, 0):
                shapes = sample.shape, arguments["encoder_hidden_states"].shape
                if shapes in self._ready:
                    continue
                try:
                    unet(sample, timestep, **arguments, return_dict=False)
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    raise NotCompiled(_reason(error)) from error
                self._ready.add(shapes)
        return len(self._ready) > before


def _reason(error: Exception) -> str:
    """What the compiler says, if it was that; torch's message begins with the command."""
    lines = [line.strip() for line in str(error).splitlines()]
    return show(next((line for line in lines if " error: " in line), first_line(error)), 160)


@contextmanager
def _compiler(kind: str, threads: int) -> Iterator[None]:
    """torch.compile as it works here: within this process, silent, with sdcli's cache unless the user named one."""
    import torch._dynamo
    import torch._inductor.config

    found = packages.compiler(kind)
    settings: dict[str, Any] = {"compile_threads": 1, "cpp.threads": threads}
    if kind == "cpu" and found is not None:
        settings["cpp.cxx"] = (found,)
    with ExitStack() as undo:
        undo.enter_context(_own_folder())
        undo.enter_context(_headers())
        undo.enter_context(torch._inductor.config.patch(settings))
        undo.enter_context(
            torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS, accumulated_recompile_limit=MOST_GRAPHS)
        )
        for name in ("torch._dynamo", "torch._inductor", "torch._functorch"):
            undo.enter_context(_silent(logging.getLogger(name)))
        yield


@contextmanager
def _own_folder() -> Iterator[None]:
    """Unless the user named one. Where nobody did, torch names its usual one as soon as it is imported; while it
    compiles it sets other variables of its own."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    before = dict(os.environ)
    if before.get(FOLDER) in (None, default_cache_dir()):
        os.environ[FOLDER] = str(folders.cache_folder() / "compile")
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _headers() -> Iterator[None]:
    """Beside the rest. torch keeps these in the system's folder for temporary files, whatever is named; without them
    compiling takes twice as long."""
    import torch._inductor.codecache as cache

    beside = os.path.join(os.environ[FOLDER], "precompiled_headers")
    own = {"_HEADER_DIR": beside, "_HEADER_LOCK_DIR": os.path.join(beside, "locks")}
    before = {name: getattr(cache, name) for name in own if hasattr(cache, name)}
    for name in before:
        setattr(cache, name, own[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(cache, name, value)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
