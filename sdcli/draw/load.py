"""Components from their files: built without memory, then filled tensor by tensor, in their dtype on their device."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sdcli.draw.adapters import Additions
from sdcli.draw.attention import Attend
from sdcli.draw.config_check import config_checked
from sdcli.draw.packed import Packer
from sdcli.draw.weights import Piece, Reader, pieces
from sdcli.errors import BadFile, Bug
from sdcli.models import keys
from sdcli.models.folder import CLASSES as OF_FOLDERS
from sdcli.models.model import Component, role
from sdcli.terminal import show

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NARROW = (torch.float8_e4m3fn,)  # for storage only

# Where the only classes that are ever built come from: no code comes from a model.
MODULES = {
    "unet": "diffusers.models.unets.unet_2d_condition",
    "vae": "diffusers.models.autoencoders.autoencoder_kl",
    "controlnet": "diffusers.models.controlnets.controlnet",
    "controlnet_union": "diffusers.models.controlnets.controlnet_union",
    "t2i_adapter": "diffusers.models.adapter",
    "upscaler": "sdcli.draw.upscale",
    "text_encoder": "transformers",
    "text_encoder_2": "transformers",
    "image_encoder": "transformers",
    "ip_adapter": "sdcli.draw.ip_adapter",
}
# transformers' classes take its own configs.
CONFIGS = {
    "text_encoder": "CLIPTextConfig", "text_encoder_2": "CLIPTextConfig", "image_encoder": "CLIPVisionConfig",
}  # fmt: skip
CLASSES = {**{name: classes[0] for name, classes in OF_FOLDERS.items()}, "upscaler": "Upscaler"}


def _nothing(key: str) -> None: ...


@dataclass(frozen=True)
class Filled:
    """A component ready to run, and the bytes it holds."""

    module: Any
    bytes: int


def load(
    name: str, component: Component, *, dtype: torch.dtype, device: torch.device | str, channels_last: bool,
    added: Additions | None = None, storage: torch.dtype | None = None, attend: Attend | None = None,
) -> Filled:  # fmt: skip
    """A component from a diffusers folder's files or a single file.

    `added` is what LoRAs add to its weights. With `storage` the large layers keep their weights in that dtype and
    widen them to `dtype` only while they compute. With `attend` the layers are packed, and attention is computed so.
    """
    module = build(name, component.config)
    filled = Packer(module, attend) if attend is not None else _nothing
    if storage is not None:  # before there are any weights: they are never held in `dtype` first
        module.to(dtype).enable_layerwise_casting(storage_dtype=storage, compute_dtype=dtype)
    if component.random:
        size = randomise(module, dtype=dtype, device=device, channels_last=channels_last, filled=filled)
        return Filled(module, size)
    stored = named(name, pieces(component.files))
    size = fill(
        module, stored, name, dtype=dtype, device=device, channels_last=channels_last, added=added or {}, filled=filled
    )
    return Filled(module, size)


def named(name: str, stored: Mapping[str, Piece]) -> dict[str, Piece]:
    """`stored` under the names the module uses, whichever of the layouts in circulation the file has."""
    return {ours: stored[origin.name].part(origin) for ours, origin in keys.rename(name, stored).items()}


def kind_of(name: str) -> Any:
    """The component's class. Its libraries take most of the time spent importing."""
    kind = role(name)
    if kind not in MODULES:
        raise BadFile(f"components called {show(name, 40)} are not supported")
    return getattr(importlib.import_module(MODULES[kind]), CLASSES[kind])


def build(name: str, config: Mapping[str, Any]) -> Any:
    """The module on the meta device: its whole structure, no memory and no random numbers."""
    kind = kind_of(name)
    class_name = config.get("_class_name") or next(iter(config.get("architectures") or ()), kind.__name__)
    if class_name != kind.__name__:
        raise BadFile(f"the model's {name} is a {show(class_name, 60)}; only {kind.__name__} is supported")
    with config_checked(name), torch.device("meta"), _WithoutValues():
        if role(name) in CONFIGS:
            its_config = getattr(importlib.import_module(MODULES[role(name)]), CONFIGS[role(name)])
            module = kind(its_config.from_dict(dict(config)))
        else:
            module = kind.from_config(dict(config))
    return module.eval()


class _WithoutValues(TorchFunctionMode):
    """Layers are not given the random values that they would begin with: on the meta device there are none, and going
    through the motions takes as long as all the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def fill(
    module: nn.Module, stored: Mapping[str, Piece], name: str, *, dtype: torch.dtype, device: torch.device | str,
    channels_last: bool, added: Additions = MappingProxyType({}), filled: Callable[[str], None] = _nothing,
) -> int:  # fmt: skip
    """Reads every parameter of `module` from `stored` and returns their bytes. None may be missing or misshapen.
    `filled` is told the name of each as soon as it is there."""
    empty = {key: (key.removeprefix("text_model."), meta) for key, meta in module.state_dict().items()}
    missing = [key for key, (bare, _) in empty.items() if bare not in stored]
    if missing:
        file = next((piece.file for piece in stored.values()), "the file")
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadFile(f"{show(file)} has no complete {name}: {show(missing[0], 120)}{more} not found")
    size = 0
    with Reader() as reader:
        for key, (bare, meta) in empty.items():
            piece = stored[bare]
            if piece.shape != meta.shape:
                shapes = f"{list(piece.shape)}, not {list(meta.shape)}"
                raise BadFile(f"{name}: {show(key, 120)} has the shape {shapes}", hint="check the model's config.json")
            tensor = _empty(meta, dtype, device, channels_last)
            if bare in added:
                exact = torch.empty(meta.shape, dtype=torch.float32)
                reader.read(piece, exact)
                for term in added[bare]:
                    term.add(exact, reader)
                tensor.copy_(exact)
            else:
                reader.read(piece, tensor)
            _assign(module, key, tensor)
            size += tensor.nbytes
            filled(key)
    _restore_buffers(module, device)
    return size


def randomise(
    module: nn.Module, *, dtype: torch.dtype, device: torch.device | str, channels_last: bool,
    filled: Callable[[str], None] = _nothing,
) -> int:  # fmt: skip
    """Random weights made in memory, the same every time; returns their bytes. They draw noise as fast as real ones
    draw images: products stay of order one, so that half precisions neither overflow nor vanish."""
    generator = torch.Generator(device).manual_seed(0)
    size = 0
    for key, meta in dict(module.state_dict()).items():
        tensor = _empty(meta, dtype, device, channels_last)
        if not meta.is_floating_point():
            tensor.copy_(torch.arange(meta.shape[-1]).expand(meta.shape))  # position numbers
        else:
            vector, spread = meta.ndim == 1, 0.1 if "embedding" in key else (meta.numel() // meta.shape[0]) ** -0.5
            mean = 1.0 if vector and not key.endswith("bias") else 0.0
            wide = tensor if tensor.dtype not in NARROW else torch.empty_like(tensor, dtype=dtype)
            tensor.copy_(wide.normal_(mean, 0.02 if vector else spread, generator=generator))
        _assign(module, key, tensor)
        size += tensor.nbytes
        filled(key)
    _restore_buffers(module, device)
    return size


def _empty(meta: torch.Tensor, dtype: torch.dtype, device: torch.device | str, channels_last: bool) -> torch.Tensor:
    own = dtype if meta.is_floating_point() and meta.dtype not in NARROW else meta.dtype
    packed = torch.channels_last if channels_last and meta.ndim == 4 else torch.contiguous_format
    return torch.empty(meta.shape, dtype=own, device=device, memory_format=packed)


def _assign(module: nn.Module, key: str, tensor: torch.Tensor) -> None:
    path, _, leaf = key.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        # Asking for gradients, as diffusers leaves them: torch multiplies differently where weights do not, and on some
        # CPUs the bits differ. None are computed: every call is made under no_grad.
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
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
