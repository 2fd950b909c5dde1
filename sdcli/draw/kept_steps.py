"""The state of a loop after a step, as bytes that another process goes on from: tensors and plain numbers, no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy
import torch
from safetensors.torch import load, save
from torch import Tensor

from sdcli.draw.denoise import LoopState
from sdcli.errors import BadFile

FORMAT = "sdcli.step/1"
_PLAIN = (int, float, bool, str, type(None))


def write(state: LoopState) -> bytes:
    """Waits for the device."""
    tensors: dict[str, Tensor] = {"latents": state.latents}
    tensors |= {f"generator.{number}": one for number, one in enumerate(state.generators)}
    values = {name: _put(value, f"scheduler.{name}", tensors) for name, value in state.scheduler.items()}
    about = {
        "format": FORMAT, "batch": state.batch, "step": state.step, "generators": len(state.generators),
        "scheduler": {name: value for name, value in values.items() if value is not None},
    }  # fmt: skip
    ours = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    data: bytes = save(ours, {"state": json.dumps(about)})
    return data


def _put(value: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """How it is written; None for what a scheduler is made with and never changes, such as its config."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name, "on_device": value.device.type != "cpu"}
    if isinstance(value, numpy.ndarray):
        tensors[name] = torch.from_numpy(numpy.ascontiguousarray(value))
        return {"array": name}
    if isinstance(value, _PLAIN):
        return {"value": value}
    if isinstance(value, numpy.generic):
        return {"value": value.item()}
    if isinstance(value, list):
        items = [_put(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
        return {"list": items} if all(item is not None for item in items) else None
    return None


def read(data: bytes, start: LoopState, scheduler: type) -> LoopState:
    """What `write` wrote, for the same batch; `start` has all that is not in it. BadFile where it is damaged, or of
    something else."""
    try:
        about = json.loads(_metadata(data)["state"])
        tensors, device = load(data), start.latents.device
        read = LoopState(
            batch=start.batch, step=int(about["step"]), latents=tensors["latents"].to(start.latents),
            scheduler={name: _get(value, tensors, device) for name, value in about["scheduler"].items()},
            generators=tuple(tensors[f"generator.{number}"] for number in range(int(about["generators"]))),
        )  # fmt: skip
    except Exception as error:  # what safetensors and json raise has no common name
        raise BadFile(f"the step that was kept is damaged ({type(error).__name__})") from None
    same = read.latents.shape == start.latents.shape and len(read.generators) == len(start.generators)
    if about.get("format") != FORMAT or not same or any(hasattr(scheduler, name) for name in read.scheduler):
        raise BadFile("the step that was kept is of another image")
    return replace(read, scheduler={**start.scheduler, **read.scheduler})


def _metadata(data: bytes) -> Mapping[str, str]:
    length = int.from_bytes(data[:8], "little")
    header: Mapping[str, Any] = json.loads(data[8 : 8 + length])
    return dict(header["__metadata__"])


def _get(value: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        return tensor.to(device) if value["on_device"] else tensor
    if "array" in value:
        return tensors[value["array"]].numpy()
    if "list" in value:
        return [_get(item, tensors, device) for item in value["list"]]
    return value["value"]
