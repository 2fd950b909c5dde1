"""diffusers' pipeline with its UNet and VAE decoder run by OpenVINO, in bf16 and for one size of image.

python -m scripts.peers.with_openvino convert|draw JOB
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scripts.peers.peer import Job, Peer, job_from, program, tell, weights_of, without
from scripts.peers.with_diffusers import drawn, pipeline_class

MODULE = "scripts.peers.with_openvino"
SMALL = 16  # latents to trace with: the same operations as at full size, in a moment


def path_of(job: Job, component: str) -> Path:
    return Path(job.made) / "openvino" / job.name.replace(" ", "-") / f"{component}.xml"


# --- once: from the model's folder to OpenVINO's files


def convert(job: Job) -> None:
    """From fp16, as the files have it: SDXL in fp32 would fill 24 GB."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(job.model, subfolder="unet", dtype=torch.float16)
    _convert(job, "unet", _module(unet, _noise), _inputs(unet.config))
    del unet
    vae = AutoencoderKL.from_pretrained(job.model, subfolder="vae", dtype=torch.float16)
    _convert(job, "vae", _module(vae, _image), {"sample": torch.zeros(1, vae.config.latent_channels, SMALL, SMALL)})


def _convert(job: Job, component: str, module: Any, inputs: dict[str, Any]) -> None:
    import openvino
    import torch
    from openvino.frontend.pytorch.patch_model import __make_16bit_traceable as make_16bit_traceable

    make_16bit_traceable(module)
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=inputs)
    shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
    shapes["sample"][2:] = [job.height // 8, job.width // 8]
    model.reshape(shapes)
    path_of(job, component).parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path_of(job, component))


def _module(component: Any, forward: Callable[..., Any]) -> Any:
    """With inputs that are tensors, and one that it returns."""
    import torch

    module = type("Traced", (torch.nn.Module,), {"forward": forward})()
    module.component = component
    return module.eval()


def _noise(self: Any, sample: Any, timestep: Any, text: Any, text_embeds: Any = None, time_ids: Any = None) -> Any:
    more = {"text_embeds": text_embeds, "time_ids": time_ids}
    return self.component(sample, timestep, text, added_cond_kwargs=more, return_dict=False)[0]


def _image(self: Any, sample: Any) -> Any:
    return self.component.decode(sample, return_dict=False)[0]


def _inputs(config: Any) -> dict[str, Any]:
    import torch

    inputs = {
        "sample": torch.zeros(2, config.in_channels, SMALL, SMALL), "timestep": torch.tensor(1.0),
        "text": torch.zeros(2, 77, config.cross_attention_dim),
    }  # fmt: skip
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs |= {"text_embeds": torch.zeros(2, pooled), "time_ids": torch.zeros(2, 6)}
    return inputs


# --- every turn


class Compiled:
    """In the place of a component: tensors in and out, numbers in between. The pipeline asks it for modules and where
    they are."""

    modules = tuple

    def __init__(self, core: Any, job: Job, component: str, kind: Any) -> None:
        import torch

        settings = {
            "INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        self._compiled = core.compile_model(core.read_model(path_of(job, component)), "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self.config = _config(job, component, kind)
        self.dtype, self.device = torch.bfloat16, torch.device("cpu")

    @property
    def precision(self) -> str:
        return str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())

    def infer(self, *tensors: Any) -> Any:
        import torch

        arrays = [torch.as_tensor(tensor).float().numpy() for tensor in tensors]
        result = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0]).to(self.dtype)


class UNet(Compiled):
    @property
    def add_embedding(self) -> Any:
        """The pipeline looks up how wide the first layer is."""
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=self.config.projection_class_embeddings_input_dim))

    def __call__(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, *,
        added_cond_kwargs: dict[str, Any] | None = None, **_: Any,
    ) -> tuple[Any]:  # fmt: skip
        return (self.infer(sample, timestep, encoder_hidden_states, *(added_cond_kwargs or {}).values()),)


class Decoder(Compiled):
    def decode(self, latents: Any, **_: Any) -> tuple[Any]:
        return (self.infer(latents),)


def _config(job: Job, component: str, kind: Any) -> Any:
    """With the class's defaults for what the file leaves out."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return SimpleNamespace(**defaults | json.loads((Path(job.model) / component / "config.json").read_text("utf-8")))


def draw(job: Job) -> None:
    started = time.perf_counter()
    import openvino
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    kind = pipeline_class(job.family)
    imported = time.perf_counter()
    core = openvino.Core()
    pipeline = kind.from_pretrained(job.model, unet=None, vae=None, dtype=torch.bfloat16)
    pipeline.unet = UNet(core, job, "unet", UNet2DConditionModel)
    pipeline.vae = Decoder(core, job, "vae", AutoencoderKL)
    ready = time.perf_counter()
    marks, done = drawn(pipeline, job)
    tell(
        imports=imported - started, load=ready - imported, marks=marks, done=done, dtype=pipeline.unet.precision,
        threads=job.threads,
    )  # fmt: skip


def _files(job: Job) -> list[Path]:
    encoders = [path for path in weights_of(job) if path.parent.name.startswith("text_encoder")]
    return [*encoders, *(path_of(job, component).with_suffix(".bin") for component in ("unet", "vae"))]


PEERS = (
    Peer(
        name="openvino-bf16",
        how="diffusers' pipeline with UNet and VAE decoder run by OpenVINO in bf16 (`INFERENCE_PRECISION_HINT`), with "
        "fixed shapes, converted once by `openvino.convert_model`; text encoders in bf16 by torch",
        packages=("openvino", "torch", "diffusers", "transformers"),
        command=program(MODULE, "draw"),
        prepare=program(MODULE, "convert"),
        prepared="converted",
        missing=lambda: without("openvino", "openvino"),
        files=_files,
    ),
)

if __name__ == "__main__":
    {"convert": convert, "draw": draw}[sys.argv[1]](job_from(sys.argv[2]))
