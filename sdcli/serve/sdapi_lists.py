"""What A1111 lists: checkpoints, samplers, adapters, memory. Files are named, their folders are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.models.headers import read_header
from sdcli.models.kinds import EMBEDDINGS
from sdcli.models.listing import Entry
from sdcli.request import samplers
from sdcli.serve import sdapi_controls
from sdcli.serve.sdapi_names import CONTROL, Names, known_hash, sorted_names

PLAIN_UPSCALERS = ("None", "Lanczos", "Nearest")


def checkpoints(names: Names) -> list[dict[str, Any]]:
    return [
        {
            "title": one.title, "model_name": one.name, "hash": one.hash, "sha256": one.sha256,
            "filename": one.filename, "config": None,
        }
        for one in names.checkpoints()
    ]  # fmt: skip


def vaes(names: Names) -> list[dict[str, Any]]:
    return [
        {"model_name": name, "filename": Path(entry.path).name} for name, entry in sorted_names(names.of_kind("vae"))
    ]


def sampling(names: Names) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name, "aliases": list(one.aliases),
            "options": {"scheduler": "karras"} if one.a1111[1] == "Karras" else {},
        }
        for one in samplers.EVERY
    ]  # fmt: skip


def schedules(names: Names) -> list[dict[str, Any]]:
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": 7.0 if name == "karras" else -1,
         "need_inner_model": False}
        for label in (samplers.AUTOMATIC, *samplers.SCHEDULES)
        for name in [label.casefold().replace(" ", "_")]
    ]  # fmt: skip


def upscalers(names: Names) -> list[dict[str, Any]]:
    listed = [(name, _scale(entry)) for name, entry in sorted_names(names.of_kind("upscaler"))]
    plain = [_upscaler(name, 4.0) for name in PLAIN_UPSCALERS]
    return [*plain, *(_upscaler(name, scale) for name, scale in listed if scale)]


def _scale(entry: Entry) -> float | None:
    """None of one that sdcli does not enlarge with."""
    from sdcli.models import upscaler

    try:
        return float(upscaler.read(Path(entry.path)).scale)
    except SdcliError:
        return None


def _upscaler(name: str, scale: float) -> dict[str, Any]:
    return {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": scale}


def latent_modes(names: Names) -> list[dict[str, Any]]:
    return [{"name": "Latent"}]


def loras(names: Names) -> list[dict[str, Any]]:
    return [
        {"name": name, "alias": name, "path": Path(entry.path).name, "metadata": {}}
        for name, entry in sorted_names(names.of_kind("lora"))
    ]


def embeddings(names: Names) -> dict[str, Any]:
    listed = sorted_names(names.of_kind("embedding"))
    return {"loaded": {name: _vectors(Path(entry.path)) for name, entry in listed}, "skipped": {}}


def _vectors(path: Path) -> dict[str, Any]:
    """Of the first tensor: SDXL's two have as many, each of its own width."""
    try:
        tensors = read_header(path).tensors
    except SdcliError:
        tensors = {}
    tensor = next((tensors[name] for name in (*EMBEDDINGS, *tensors) if name in tensors), None)
    shape = tensor.shape if tensor is not None else (0, 0)
    vectors, width = (1, shape[0]) if len(shape) == 1 else shape[:2]
    return {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": width, "vectors": vectors}


def control_models(names: Names) -> dict[str, Any]:
    listed = sorted_names(names.of_kind(*CONTROL))
    return {"model_list": [_with_hash(name, entry) for name, entry in listed]}


def _with_hash(name: str, entry: Entry) -> str:
    sha256 = known_hash(entry.path)
    return f"{name} [{sha256[:8]}]" if sha256 else name


def control_modules(names: Names) -> dict[str, Any]:
    return {"module_list": sdapi_controls.listed_modules(), "module_detail": {}}


def memory(names: Names) -> dict[str, Any]:
    import psutil

    from sdcli.machine import survey

    ram = psutil.virtual_memory()
    device = survey.choose(names.device, survey.look())
    answer: dict[str, Any] = {"ram": {"free": ram.available, "used": ram.used, "total": ram.total}}
    if device.kind == "cpu":
        return {**answer, "cuda": {"error": "unavailable"}}
    nothing = {"current": 0, "peak": 0}
    system = {"free": device.free, "used": device.total - device.free, "total": device.total}
    of_torch = dict.fromkeys(("active", "allocated", "reserved", "inactive"), nothing)
    return {**answer, "cuda": {"system": system, **of_torch, "events": {"retries": 0, "oom": 0}}}


def nothing(names: Names) -> list[Any]:
    return []


def scripts(names: Names) -> dict[str, Any]:
    return {"txt2img": [], "img2img": []}


def flags(names: Names) -> dict[str, Any]:
    return {}


Listed = Callable[[Names], Any]
LISTS: dict[str, Listed] = {
    "/sdapi/v1/sd-models": checkpoints, "/sdapi/v1/sd-vae": vaes, "/sdapi/v1/samplers": sampling,
    "/sdapi/v1/schedulers": schedules, "/sdapi/v1/upscalers": upscalers,
    "/sdapi/v1/latent-upscale-modes": latent_modes, "/sdapi/v1/loras": loras, "/sdapi/v1/embeddings": embeddings,
    "/sdapi/v1/memory": memory, "/sdapi/v1/cmd-flags": flags, "/sdapi/v1/scripts": scripts,
    "/controlnet/model_list": control_models, "/controlnet/module_list": control_modules,
    "/controlnet/version": lambda names: {"version": 2},
    **dict.fromkeys(
        (f"/sdapi/v1/{name}" for name in (
            "face-restorers", "realesrgan-models", "hypernetworks", "artists", "artist-categories", "prompt-styles",
            "script-info", "extensions",
        )),
        nothing,
    ),
}  # fmt: skip
