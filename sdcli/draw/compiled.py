"""UNet and VAE computed by OpenVINO: torch's tensors in and out, in place of diffusers' modules."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from sdcli.draw.graphs import Graph, Waves, openvino
from sdcli.plan.techniques.vae import SHAPES

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class Compiled(nn.Module):
    """A graph, compiled for the shapes it is called with. Its weights are those that OpenVINO packs for each of them;
    the graph's own stay on disk."""

    number_type: Tensor
    most = 1  # shapes to be ready for
    settings: Mapping[str, object] = {}  # that differ from the usual ones

    def __init__(self, graph: Graph, dtype: torch.dtype, threads: int) -> None:
        super().__init__()
        self.register_buffer("number_type", torch.empty(0, dtype=dtype))  # what diffusers' `dtype` is read from
        self.graph, self.threads = graph, threads
        self.calls = 0
        self._pages: list[Any] = []  # compiled models read their graph's weights, but do not own them
        self._requests: dict[tuple[torch.Size, ...], Any] = {}

    def call(self, given: Mapping[str, Tensor]) -> Tensor:
        """`given` by the graph's names."""
        shapes = tuple(value.shape for value in given.values())
        if shapes not in self._requests:
            if len(self._requests) >= self.most:
                self._requests.clear()  # first: each has packed weights
                self._pages.clear()
            self._requests[shapes] = self._compiled(given)
        request = self._requests[shapes]
        kept = {name: value.detach().contiguous() for name, value in given.items()}  # until the call is over
        for name, value in kept.items():
            request.set_tensor(name, _seen(value))
        port = request.model_outputs[0]
        result = torch.empty(tuple(port.shape), dtype=self.number_type.dtype)
        request.set_output_tensor(0, _seen(result))
        request.infer()
        self.calls += 1
        return result

    def _compiled(self, given: Mapping[str, Tensor]) -> Any:
        library = openvino()
        core = library.Core()
        with self.graph.weights.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        weights = library.Tensor(numpy.frombuffer(pages, dtype=numpy.uint8), shared_memory=True)
        self._pages.append(weights)
        model = core.read_model(self.graph.steps.read_bytes(), weights)
        model.reshape({name: list(value.shape) for name, value in given.items()})
        settings: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.number_type.dtype], "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        request = core.compile_model(model, "CPU", {**settings, **self.settings}).create_infer_request()
        del model
        _return(pages)
        return request


def _return(pages: mmap.mmap) -> None:
    """The compiled model has packed most weights and reads these no more; others come back from the file."""
    if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system takes them back when it needs the memory
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_DONTNEED)


def _seen(tensor: Tensor) -> Any:
    """The same memory as OpenVINO's tensor; numpy has no bf16."""
    library = openvino()
    if tensor.dtype == torch.bfloat16:
        return library.Tensor(tensor.view(torch.int16).numpy(), library.Shape(list(tensor.shape)), library.Type.bf16)
    return library.Tensor(tensor.numpy(), shared_memory=True)


class Unet(Compiled):
    """Called as diffusers' UNet is; `empty` is one without weights."""

    def __init__(self, empty: Any, graph: Graph, dtype: torch.dtype, threads: int) -> None:
        super().__init__(graph, dtype, threads)
        self.config, self.waves = empty.config, Waves(empty)
        if self.config.resnet_time_scale_shift == "scale_shift":
            # OpenVINO 2026.4 joins these layers' small steps in fp32 to kernels that end the process.
            self.settings = {"SNIPPETS_MODE": "DISABLE"}

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None, return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        given = {"sample": sample, "encoder_hidden_states": encoder_hidden_states}
        return (self.call(given | self.waves(len(sample), timestep, added_cond_kwargs or {}, self.dtype)),)

    @property
    def dtype(self) -> torch.dtype:
        return self.number_type.dtype


class Decoder(Compiled):
    """What stands in diffusers' VAE for its decoder."""

    most = SHAPES

    def forward(self, latents: Tensor) -> Tensor:
        return self.call({"latents": latents})


def vae(empty: Any, decoder: Decoder) -> Any:
    """diffusers' VAE, `empty` of weights, with this decoder: tiles are cut and joined as ever."""
    empty.encoder = empty.quant_conv = None
    empty.post_quant_conv = nn.Identity() if empty.post_quant_conv is not None else None  # it is in the graph
    empty.decoder = decoder
    return empty
