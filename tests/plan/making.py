"""What the plan's tests start from: models from the shipped configs, made-up GPUs, and a request with its jobs."""

from __future__ import annotations

from typing import Any

from sdcli import data
from sdcli.machine.hardware import Hardware
from sdcli.models import text, unet, vae
from sdcli.models.model import Component, Model
from sdcli.request.request import Job, Request
from sdcli.sizes import GIB

NATIVE = {"sd15": 512, "sdxl": 1024}


def known_model(family: str, *, stored: str = "fp16", vae_config: dict[str, Any] | None = None) -> Model:
    """sd15 or sdxl as the shipped configs describe it, stored in one dtype."""
    size = {"fp16": 2, "bf16": 2, "fp32": 4}[stored]
    configs = {"unet": data.component_config(family, "unet"), "vae": data.component_config(family, "vae")}
    configs["vae"] = {**configs["vae"], **(vae_config or {})}
    for name in ("text_encoder", "text_encoder_2")[: 1 if family == "sd15" else 2]:
        configs[name] = data.component_config(family, name)
    components = {}
    for name, config in configs.items():
        if name == "unet":
            count = unet.analyse(config, height=64, width=64).parameters
        elif name == "vae":
            count = vae.parameters(config)
        else:
            count = text.parameters(config)
        components[name] = Component(parameters=count, stored_bytes=count * size, stored_dtype=stored, config=config)
    return Model(name=family, kind=family, family=family, source="hub", components=components)


def gpu(
    gib: float, *, free: float | None = None, ram: float = 32, capability: str = "8.9", name: str = "RTX 4060"
) -> Hardware:
    """An NVIDIA GPU in a host with `ram` GiB free."""
    return Hardware(
        device="cuda:0", name=name, source="as-if",
        total=int(gib * GIB), free=int((gib if free is None else free) * GIB),
        ram_total=int(ram * GIB), ram_free=int(ram * GIB), capability=capability, isa="avx2", threads=8,
    )  # fmt: skip


def processor(ram: float, *, isa: str = "avx512_bf16", threads: int = 2, **dtypes: str) -> Hardware:
    """A CPU with `ram` GiB free."""
    size = int(ram * GIB)
    return Hardware(
        device="cpu", name="CPU", source="as-if", total=size, free=size, ram_total=size, ram_free=size, isa=isa,
        threads=threads, dtypes=dtypes,
    )  # fmt: skip


def mac(ram: float) -> Hardware:
    size = int(ram * GIB)
    return Hardware(
        device="mps", name="Apple M2", source="as-if", total=size, free=size, ram_total=size, ram_free=size, isa="neon",
        threads=8,
    )  # fmt: skip


def asking(family: str, *, size: int | tuple[int, int] | None = None, count: int = 1, **fields: Any) -> Request:
    width, height = size if isinstance(size, tuple) else (size or NATIVE[family],) * 2
    named: dict[str, Any] = {
        "prompts": ("a cat",), "model": family, "num_images": count, "seeds": tuple(range(count)), "width": width,
        "height": height, "steps": 25 if family == "sd15" else 30, "guidance": 7.0 if family == "sd15" else 5.5,
    }  # fmt: skip
    return Request(**{**named, **fields})


def jobs_of(request: Request) -> tuple[Job, ...]:
    pairs = [(prompt, seed) for prompt in request.prompts for seed in request.seeds]
    return tuple(
        Job(
            index=index, prompt=prompt, negative_prompt="", seed=seed, steps=request.steps, unet_calls=request.steps,
            guidance=request.guidance, width=request.width, height=request.height, sampler=request.sampler,
        )
        for index, (prompt, seed) in enumerate(pairs)
    )  # fmt: skip
