"""OpenVINO's graphs of UNet and VAE decoder: converted once from diffusers' modules, then kept on disk.

A graph holds for every size of image and every CPU, so that there is one per component, weights and number type.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.errors import CannotWrite
from sdcli.files import cannot_write
from sdcli.machine import folders, packages
from sdcli.models.hub_cache import expected_sha256
from sdcli.models.model import Component
from sdcli.plan.plan import Adapter
from sdcli.sizes import GIB

LAYOUT = 1  # of what is kept on disk
MOST_BYTES = 24 * GIB  # on disk; the graphs that were not used for longest make room
# Neither is a multiple of what the UNet halves: a trace of even sizes would hold for even sizes only.
TRACED = (9, 13)

Given = Mapping[str, Tensor]


@dataclass(frozen=True)
class Graph:
    """The files of one graph; its weights are as large as those of the module."""

    folder: Path

    @property
    def steps(self) -> Path:
        return self.folder / "graph.xml"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.bin"

    def whole(self) -> bool:
        """Whether it was written to its end, and what can be looked at quickly is as it was."""
        try:
            facts = json.loads((self.folder / "whole.json").read_text(encoding="utf-8"))
            return bool(facts == _facts(self))
        except (OSError, ValueError):
            return False


def _facts(graph: Graph) -> dict[str, Any]:
    """All of the weights would take seconds to hash; their size is looked at."""
    return {"weights": graph.weights.stat().st_size, "graph": sha256(graph.steps.read_bytes()).hexdigest()}


def openvino() -> Any:
    """The library. Importing it would send usage data to its maker; without the package that does, nothing is sent."""
    name = "openvino_telemetry"
    if "openvino" not in sys.modules and name not in sys.modules:
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            import openvino.frontend.pytorch.ts_decoder
        finally:
            del sys.modules[name]
    import openvino

    return openvino


def graph_of(
    name: str, component: Component, adapters: Sequence[Adapter], dtype: torch.dtype, load: Callable[[], nn.Module]
) -> Graph:
    """The component's graph; `load` gives the module to convert where there is none yet."""
    folder = folders.cache_folder() / "openvino"
    graph = Graph(folder / _key(name, component, adapters, dtype))
    if graph.whole():
        with contextlib.suppress(OSError):
            os.utime(graph.folder)  # used now
        return graph
    try:
        _write(graph, partial(_convert, name, component.config, dtype, load))
        _make_room(folder, graph)
    except OSError as error:
        raise _no_room(graph, error) from None
    return graph


def _no_room(graph: Graph, error: OSError) -> CannotWrite:
    return cannot_write(graph.folder, error, hint="the same command with --pin execution=packed")


def _key(name: str, component: Component, adapters: Sequence[Adapter], dtype: torch.dtype) -> str:
    """Equal for equal weights converted by equal software."""
    versions = [f"{v.name} {v.version}" for v in packages.versions(("openvino", "torch", "diffusers"))]
    added = [(each.sha256, each.scale) for each in adapters if each.kind == "lora" and name == "unet"]
    weights = [_identity(Path(file)) for file in component.files]
    config = json.dumps(dict(component.config), sort_keys=True, default=str)
    parts = (LAYOUT, name, str(dtype), component.random, weights, added, config, versions)
    return f"{name}-{sha256(repr(parts).encode()).hexdigest()[:24]}"


def _identity(file: Path) -> object:
    """The Hub's checksum where it is known; to hash a file would take longer than to load it."""
    status = file.stat()
    return expected_sha256(file) or (str(file.resolve()), status.st_size, status.st_mtime_ns)


def _write(graph: Graph, convert: Callable[[Graph], None]) -> None:
    """Under another name first, so that a graph that is there is whole."""
    graph.folder.parent.mkdir(parents=True, exist_ok=True)
    part = Graph(Path(tempfile.mkdtemp(prefix=f"{graph.folder.name}.part-", dir=graph.folder.parent)))
    try:
        convert(part)
        gc.collect()  # the traced module holds reference cycles
        (part.folder / "whole.json").write_text(json.dumps(_facts(part)), encoding="utf-8")
        if not graph.whole():  # another run may have written it meanwhile
            shutil.rmtree(graph.folder, ignore_errors=True)
            with contextlib.suppress(FileExistsError):
                os.rename(part.folder, graph.folder)
    finally:
        shutil.rmtree(part.folder, ignore_errors=True)


def _make_room(folder: Path, newest: Graph) -> None:
    graphs = sorted((Graph(path) for path in folder.iterdir()), key=lambda each: each.folder.stat().st_mtime)
    size = sum(map(_size, graphs))
    for graph in graphs:
        if size > MOST_BYTES and graph != newest:
            size -= _size(graph)
            shutil.rmtree(graph.folder, ignore_errors=True)


def _size(graph: Graph) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in graph.folder.iterdir())
    return 0


# --- conversion


class Waves(nn.Module):
    """What of a UNet is computed in fp32 whatever its dtype: numbers as sines and cosines. Outside of the graph, since
    OpenVINO in bf16 would round the numbers first."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.time, self.sizes = unet.time_proj, getattr(unet, "add_time_proj", None)

    def forward(self, rows: int, timestep: Tensor, added: Given, dtype: torch.dtype) -> dict[str, Tensor]:
        """The graph's inputs in place of these."""
        given = {"timestep": self.time(timestep.expand(rows)).to(dtype)}
        if self.sizes is None:
            return given
        sizes = self.sizes(added["time_ids"].flatten()).reshape(rows, -1)
        return given | {"text_embeds": added["text_embeds"], "time_ids": sizes.to(dtype)}


class Unet(nn.Module):
    """diffusers' UNet behind its waves, with every input given by its place."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        unet.get_time_embed = lambda sample, timestep: timestep
        unet.add_time_proj = nn.Identity()

    def forward(
        self, sample: Tensor, encoder_hidden_states: Tensor, timestep: Tensor, text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        result: Tensor = self.unet(
            sample, timestep, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]
        return result


class Decoder(nn.Module):
    """The half of diffusers' VAE that turns latents into pixels."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.inward, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        result: Tensor = self.decoder(latents if self.inward is None else self.inward(latents))
        return result


@torch.no_grad()
def _convert(
    name: str, config: Mapping[str, Any], dtype: torch.dtype, load: Callable[[], nn.Module], into: Graph
) -> None:
    """Writes the graph, its weights from the module's own memory: the module has to be there until they are written.
    Shapes stay open.

    Through the front end itself: `openvino.convert_model` is the same behind a layer that sends usage data.
    """
    library = openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    module: Any = load()
    given = _of_unet(module, config, dtype) if name == "unet" else _of_decoder(config, dtype)
    wrapped = (Unet if name == "unet" else Decoder)(module).eval()
    with warnings.catch_warnings(action="ignore"):  # of shapes that hold for this call only: all are checked by tests
        traced = torch.jit.trace(wrapped, tuple(given.values()), strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced, example_input=tuple(given.values()))
        front_end = FrontEndManager().load_by_framework("pytorch")
        graph = front_end.convert(front_end.load(decoder))
    for port, (key, value) in zip(graph.inputs, given.items(), strict=True):
        port.get_tensor().set_names({key})
        port.get_node().set_element_type(_types(library)[value.dtype])
        port.get_node().set_partial_shape(library.PartialShape([-1] * value.ndim))
    graph.validate_nodes_and_infer_types()
    library.serialize(graph, str(into.steps), str(into.weights))
    del graph, decoder, traced, wrapped, module  # in this order, and not before


def _types(library: Any) -> dict[torch.dtype, Any]:
    return {torch.float32: library.Type.f32, torch.bfloat16: library.Type.bf16}


def _of_decoder(config: Mapping[str, Any], dtype: torch.dtype) -> Given:
    """Small inputs to follow a call with."""
    return {"latents": torch.zeros((1, config.get("latent_channels", 4), *TRACED), dtype=dtype)}


def _of_unet(unet: Any, config: Mapping[str, Any], dtype: torch.dtype) -> Given:
    added = {}
    if config.get("addition_embed_type") == "text_time":
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": torch.zeros((2, width), dtype=dtype), "time_ids": torch.zeros((2, 6), dtype=dtype)}
    given = {
        "sample": torch.zeros((2, config["in_channels"], *TRACED), dtype=dtype),
        "encoder_hidden_states": torch.zeros((2, 77, config["cross_attention_dim"]), dtype=dtype),
    }
    return {**given, **Waves(unet).forward(2, torch.tensor(500.0), added, dtype)}
