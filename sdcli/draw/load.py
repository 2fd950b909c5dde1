"""Components from their files: built without memory, then filled tensor by tensor, in their dtype on their device."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from sdcli.draw.adapters import Additions
from sdcli.draw.made import made_from_config
from sdcli.draw.weights import Piece, Reader, pieces
from sdcli.errors import BadFile, Bug
from sdcli.models.expected import open_clip
from sdcli.models.model import Component
from sdcli.terminal import show

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NARROW = (torch.float8_e4m3fn,)  # for storage only

# The only classes that are ever built. A config that names another is refused: no code comes from a model.
CLASSES = {
    "unet": ("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel"),
    "vae": ("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Filled:
    """A component ready to run, and the bytes it holds."""

    module: Any
    bytes: int


def load(
    name: str, component: Component, *, dtype: torch.dtype, device: torch.device | str, channels_last: bool,
    added: Additions | None = None, storage: torch.dtype | None = None,
) -> Filled:  # fmt: skip
    """`unet`, `vae`, `text_encoder` or `text_encoder_2` from a diffusers folder's files or a whole checkpoint.

    `added` is what LoRAs add to its weights. With `storage` the large layers keep their weights in that dtype and
    widen them to `dtype` only while they compute.
    """
    module = build(name, component.config)
    if storage is not None:  # before there are any weights: they are never held in `dtype` first
        module.to(dtype).enable_layerwise_casting(storage_dtype=storage, compute_dtype=dtype)
    if component.random:
        return Filled(module, randomise(module, dtype=dtype, device=device, channels_last=channels_last))
    tensors = named(name, component.config, pieces(component.files))
    size = fill(module, tensors, name, dtype=dtype, device=device, channels_last=channels_last, added=added or {})
    return Filled(module, size)


def kind_of(name: str) -> Any:
    """The component's class. Importing its libraries is most of the imports' time."""
    if name not in CLASSES:
        raise BadFile(f"components called {show(name, 40)} are not supported")
    place, cls = CLASSES[name]
    return getattr(importlib.import_module(place), cls)


def build(name: str, config: Mapping[str, Any]) -> Any:
    """The module on the meta device: its whole structure, no memory and no random numbers."""
    kind = kind_of(name)
    class_name = config.get("_class_name") or next(iter(config.get("architectures") or ()), kind.__name__)
    if class_name != kind.__name__:
        raise BadFile(f"the model's {name} is a {show(class_name, 60)}; only {kind.__name__} is supported")
    with made_from_config(name), torch.device("meta"):
        if name.startswith("text_encoder"):
            from transformers import CLIPTextConfig

            module = kind(CLIPTextConfig.from_dict(dict(config)))
        else:
            module = kind.from_config(dict(config))
    return module.eval().requires_grad_(False)


def _file_of(found: Mapping[str, Piece]) -> str:
    return show(next((piece.file for piece in found.values()), "the file"))


def fill(
    module: nn.Module, found: Mapping[str, Piece], name: str, *, dtype: torch.dtype, device: torch.device | str,
    channels_last: bool, added: Additions = MappingProxyType({}),
) -> int:  # fmt: skip
    """Reads every parameter of `module`; the bytes they take. None may be missing or have another shape."""
    empty = dict(module.state_dict())
    missing = [key for key in empty if key not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadFile(f"{_file_of(found)} has no complete {name}: {show(missing[0], 120)}{more} not found")
    size = 0
    with Reader() as reader:
        for key, meta in empty.items():
            if found[key].shape != meta.shape:
                shapes = f"{list(found[key].shape)}, not {list(meta.shape)}"
                raise BadFile(f"{name}: {show(key, 120)} has the shape {shapes}", hint="check the model's config.json")
            tensor = _room_for(meta, dtype, device, channels_last)
            if key in added:
                exact = torch.empty(meta.shape, dtype=torch.float32)
                reader.read(found[key], exact)
                for term in added[key]:
                    term.add(exact, reader)
                tensor.copy_(exact)
            else:
                reader.read(found[key], tensor)
            _assign(module, key, tensor)
            size += tensor.nbytes
    _restore_buffers(module, device)
    return size


def randomise(module: nn.Module, *, dtype: torch.dtype, device: torch.device | str, channels_last: bool) -> int:
    """Random weights made in memory, the same every time; the bytes they take. They draw noise as fast as real ones
    draw images: products stay of order one, so that half precisions neither overflow nor vanish."""
    generator = torch.Generator(device).manual_seed(0)
    size = 0
    for key, meta in dict(module.state_dict()).items():
        tensor = _room_for(meta, dtype, device, channels_last)
        if not meta.is_floating_point():
            tensor.copy_(torch.arange(meta.shape[-1]).expand(meta.shape))  # position numbers
        elif meta.ndim == 1:
            wide = tensor if tensor.dtype not in NARROW else torch.empty_like(tensor, dtype=dtype)
            tensor.copy_(wide.normal_(0.0 if key.endswith("bias") else 1.0, 0.02, generator=generator))
        else:
            spread = 0.1 if "embedding" in key else (meta.numel() // meta.shape[0]) ** -0.5
            wide = tensor if tensor.dtype not in NARROW else torch.empty_like(tensor, dtype=dtype)
            tensor.copy_(wide.normal_(0.0, spread, generator=generator))
        _assign(module, key, tensor)
        size += tensor.nbytes
    _restore_buffers(module, device)
    return size


def _room_for(meta: torch.Tensor, dtype: torch.dtype, device: torch.device | str, channels_last: bool) -> torch.Tensor:
    kept = dtype if meta.is_floating_point() and meta.dtype not in NARROW else meta.dtype
    packed = torch.channels_last if channels_last and meta.ndim == 4 else torch.contiguous_format
    return torch.empty(meta.shape, dtype=kept, device=device, memory_format=packed)


def _assign(module: nn.Module, key: str, tensor: torch.Tensor) -> None:
    path, _, leaf = key.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _restore_buffers(module: nn.Module, device: torch.device | str) -> None:
    """Buffers that are in no file: CLIP's position numbers are counted again."""
    for key, buffer in list(module.named_buffers()):
        if buffer.device.type != "meta":
            continue
        if not key.endswith("position_ids"):
            raise Bug(f"{type(module).__name__} has a buffer {key} that is in no file")
        _assign(module, key, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))


# Names


def named(name: str, config: Mapping[str, Any], stored: Mapping[str, Piece]) -> dict[str, Piece]:
    """`stored` under the names the module uses, whichever of the layouts in circulation the file has."""
    if name == "unet":
        return _unet_names(config, dict(stored))
    if name == "vae":
        return _vae_names(config, dict(stored))
    return _text_names(name, dict(stored))


def _unet_names(config: Mapping[str, Any], stored: dict[str, Piece]) -> dict[str, Piece]:
    prefix = "model.diffusion_model."
    if "input_blocks.0.0.weight" in stored:  # a UNet alone, without the checkpoint's prefix
        stored = {prefix + key: piece for key, piece in stored.items()}
    if not any(key.startswith(prefix) for key in stored):
        return stored
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    converted: dict[str, Piece] = convert_ldm_unet_checkpoint(stored, dict(config))
    return converted


def _vae_names(config: Mapping[str, Any], stored: dict[str, Piece]) -> dict[str, Piece]:
    if any("decoder.up." in key for key in stored):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        stored = convert_ldm_vae_checkpoint(stored, dict(config))
    found: dict[str, Piece] = {}
    for key, piece in stored.items():
        parts = key.split(".")
        if "attentions" in parts:
            parts[4:5] = [_OLD_ATTENTION.get(parts[4], parts[4])]
            if piece.ndim == 4:  # attention written as 1×1 convolutions
                piece = piece[:, :, 0, 0]
        found[".".join(parts)] = piece
    return found


def _text_names(name: str, stored: dict[str, Piece]) -> dict[str, Piece]:
    from diffusers.loaders import single_file_utils

    if prefix := open_clip(name, stored):
        if prefix + "text_projection" not in stored and name == "text_encoder_2":
            raise BadFile(f"{_file_of(stored)} has no complete {name}: {prefix}text_projection not found")
        width = stored[prefix + "ln_final.weight"].shape[0] if prefix + "ln_final.weight" in stored else 0
        like = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
        stored = single_file_utils.convert_open_clip_checkpoint(like, stored, prefix=prefix)
    elif any(key.startswith(("cond_stage_model.", "conditioner.")) for key in stored):
        stored = single_file_utils.convert_ldm_clip_checkpoint(stored)
    # transformers has moved CLIP's layers in and out of `text_model`: each name answers to both spellings
    bare = {key.removeprefix("text_model."): piece for key, piece in stored.items()}
    return bare | {f"text_model.{key}": piece for key, piece in bare.items()}
