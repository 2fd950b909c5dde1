"""diffusers' own pipeline: as it comes, in bf16 with channels last, and compiled by torch.

python -m scripts.peers.with_diffusers fp32|bf16|compiled JOB
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.peers.peer import (
    GUIDANCE,
    MODES,
    PROMPT,
    SEED,
    STRENGTH,
    WEIGHT,
    Job,
    Peer,
    job_from,
    program,
    tell,
    weights_of,
)

MODULE = "scripts.peers.with_diffusers"
PACKAGES = ("torch", "diffusers", "transformers")


def pipeline_class(family: str, mode: str = "text") -> Any:
    """Named, so that all it needs is imported here and not while loading."""
    import diffusers

    large = family == "sdxl"
    if mode == "image":
        return diffusers.StableDiffusionXLImg2ImgPipeline if large else diffusers.StableDiffusionImg2ImgPipeline
    if mode == "control":
        return diffusers.StableDiffusionXLControlNetPipeline if large else diffusers.StableDiffusionControlNetPipeline
    return diffusers.StableDiffusionXLPipeline if large else diffusers.StableDiffusionPipeline


def loaded(kind: Any, job: Job, way: str) -> Any:
    import torch

    dtype, beside = torch.float32 if way == "fp32" else torch.bfloat16, {}
    if job.mode == "control":
        from diffusers import ControlNetModel

        beside["controlnet"] = ControlNetModel.from_pretrained(job.net, torch_dtype=dtype)
    # fp32 is the default and is said all the same: with files in fp16 the text encoders would stay in fp16, and fail.
    pipeline = kind.from_pretrained(job.model, dtype=dtype, **beside)
    if job.mode == "reference":
        folder, name = job.adapter.parent, job.adapter.name
        pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=name, image_encoder_folder="image_encoder")
        pipeline.set_ip_adapter_scale(WEIGHT)
    if way != "fp32":
        for module in (pipeline.unet, pipeline.vae, *beside.values()):
            module.to(memory_format=torch.channels_last)
    if way == "compiled":
        pipeline.unet = torch.compile(pipeline.unet)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode)
    return pipeline


def drawn(pipeline: Any, job: Job) -> tuple[list[float], float]:
    """Saves the image; when the steps began, when each was done, and when the image was."""
    import torch
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    marks: list[float] = []
    begin = pipeline.scheduler.scale_model_input  # the first call of every step

    def beginning(*arguments: Any, **named: Any) -> Any:
        if not marks:
            marks.append(time.perf_counter())
        return begin(*arguments, **named)

    def ended(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        marks.append(time.perf_counter())
        return tensors

    pipeline.scheduler.scale_model_input = beginning
    image = pipeline(
        PROMPT, num_inference_steps=job.steps, guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED), callback_on_step_end=ended, **_of_mode(job),
    ).images[0]  # fmt: skip
    done = time.perf_counter()
    image.save(job.image)
    return marks, done


def _of_mode(job: Job) -> dict[str, Any]:
    size = {"width": job.width, "height": job.height}
    if job.mode == "text":
        return size
    with Image.open(job.picture) as picture:
        given = {"image": picture.convert("RGB")}
    if job.mode == "reference":
        return {"ip_adapter_image": given["image"], **size}
    return given | ({"strength": STRENGTH} if job.mode == "image" else size)


def main(way: str, job: Job) -> None:
    started = time.perf_counter()
    if way == "compiled":
        os.environ |= {"TORCHINDUCTOR_FREEZING": "1", "TORCHINDUCTOR_CACHE_DIR": str(_cache(job))}
    import torch

    kind = pipeline_class(job.family, job.mode)
    imported = time.perf_counter()
    pipeline = loaded(kind, job, way)
    ready = time.perf_counter()
    marks, done = drawn(pipeline, job)
    tell(
        imports=imported - started, load=ready - imported, marks=marks, done=done,
        dtype=str(pipeline.unet.dtype).removeprefix("torch."), threads=torch.get_num_threads(),
    )  # fmt: skip


def _cache(job: Job) -> Path:
    return Path(job.made) / "inductor"


def _compile(job: Job) -> list[str]:
    """Fills the compiler's cache; two steps run all that is compiled."""
    return program(MODULE, "compiled")(replace(job, steps=2))


def _compiler() -> str | None:
    return None if shutil.which("g++") or shutil.which("clang++") else "there is no C++ compiler"


def _peer(way: str, how: str, **more: Any) -> Peer:
    return Peer(
        name=f"diffusers-{way}", how=how, packages=PACKAGES, command=program(MODULE, way), files=weights_of,
        **{"missing": lambda: None, **more},
    )  # fmt: skip


PEERS = (
    _peer("fp32", "diffusers' pipeline as it comes, on a CPU in fp32", modes=MODES),
    _peer("bf16", "diffusers' pipeline with `dtype=torch.bfloat16`, its models in `torch.channels_last`", modes=MODES),
    _peer(
        "compiled", "as diffusers-bf16, under `torch.compile` with freezing, the compiler's cache filled before",
        prepare=_compile, prepared="compiled", missing=_compiler, only_if_named=True,
    ),
)  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1], job_from(sys.argv[2]))
