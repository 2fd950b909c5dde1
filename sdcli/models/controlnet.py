"""ControlNets: a diffusers folder or a single file becomes a value; all that only goes by the name is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.errors import BadFile
from sdcli.models import configs, control_walk, folder, keys
from sdcli.models.families import families, find, of_unet
from sdcli.models.headers import Header, read_header
from sdcli.models.kinds import CONTROL, TITLES, Kind, controlnet_family, kind_of, part_of
from sdcli.models.model import Component, Model
from sdcli.models.shipped import parameters_of
from sdcli.schema import transient
from sdcli.terminal import show

PART = "controlnet"
_HINT = "a ControlNet for Stable Diffusion 1.5, Stable Diffusion 2 or SDXL, as .safetensors"
# What must agree for its results to fit a UNet's.
_FITTING = ("block_out_channels", "layers_per_block", "addition_embed_type", "projection_class_embeddings_input_dim")


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    name: str  # short, fit to show
    family: str  # whose models it steers
    component: Component
    path: str = transient(default="")

    @property
    def pooled(self) -> bool:
        """Whether it tells what an image is like and not where: then it steers the prompts' side of guidance only."""
        return self.component.config.get("global_pool_conditions") is True


def part(number: int) -> str:
    """What the components of several are called, counted from 0."""
    return PART if number == 0 else f"{PART}_{number + 1}"


def read(path: Path) -> ControlNet:
    return _in_folder(path) if path.is_dir() else _in_file(path)


def check_fits(controlnet: ControlNet, model: Model) -> None:
    """That it was made for models such as this one."""
    own, unet = controlnet.component.config, model.components["unet"].config
    if controlnet.family != model.family:
        raise BadFile(
            f"{show(controlnet.name, 80)} is a ControlNet for {_title(controlnet.family)}; {show(model.name, 80)} is "
            f"{_title(model.family)}",
            hint=f"a ControlNet for {_title(model.family)}" if model.family in _families() else _HINT,
        )
    names = [*_FITTING, *(["cross_attention_dim"] if _attends(own) else [])]
    differing = [name for name in names if own.get(name) != unet.get(name)]
    if differing or own.get("in_channels", 4) != model.components["vae"].config.get("latent_channels", 4):
        name = differing[0] if differing else "in_channels"
        raise BadFile(
            f"{show(controlnet.name, 80)} was made for another UNet than that of {show(model.name, 80)}: its {name} is "
            f"{show(own.get(name), 60)}, not {show(unet.get(name), 60)}",
            hint=f"a ControlNet for {_title(model.family)}",
        )


def _families() -> tuple[str, ...]:
    return tuple(name for name, family in families().items() if family.text_width)


def _title(family: str) -> str:
    return TITLES.get(family) or find(family).title


def _attends(config: Mapping[str, Any]) -> bool:
    return any("CrossAttn" in str(kind) for kind in (*config.get("down_block_types", ()), config.get("mid_block_type")))


# --- a diffusers folder


def _in_folder(path: Path) -> ControlNet:
    file = path / "config.json"
    config = folder.read_json(file)
    named = config.get("_class_name", control_walk.CLASS)
    if named != control_walk.CLASS:
        raise BadFile(f"{show(path)} is {_CLASSES.get(str(named)) or show(named, 60)}{_NOT_USED}", hint=_HINT)
    configs.check(PART, config, file)
    family = of_unet(config)
    if family is None or family.name not in _families():
        raise BadFile(f"{show(path)} is a ControlNet for no model that sdcli draws with", hint=_HINT)
    return ControlNet(
        name=path.name, family=family.name, component=folder.component_at(path, PART, config), path=str(path)
    )


_NOT_USED = ", which sdcli cannot draw with"
_CLASSES = {
    "ControlNetUnionModel": "a ControlNet Union", "ControlNetXSAdapter": "a ControlNet-XS",
    "UNetControlNetXSModel": "a ControlNet-XS", "T2IAdapter": "a T2I-Adapter",
    "SD3ControlNetModel": "a ControlNet for Stable Diffusion 3", "FluxControlNetModel": "a ControlNet for FLUX",
    "SparseControlNetModel": "a ControlNet for videos", "UNet2DConditionModel": "a UNet",
}  # fmt: skip


# --- a single file


def _in_file(path: Path) -> ControlNet:
    header = read_header(path)
    kind = kind_of(header)
    beside = any(name.startswith(CONTROL) for name in header.tensors)  # a whole model may be in it too
    if kind.kind != PART and not (beside and kind.kind in TITLES and kind.parts.keys() & {"unet", "vae"}):
        raise _other(path, kind)
    named = _named(header)
    family = controlnet_family(named)
    if family not in _families() or not _complete(named):
        raise BadFile(
            f"{show(path)} is a ControlNet for {TITLES.get(family, 'no model')} that sdcli draws with"
            if family not in _families()
            else f"{show(path)} is an incomplete ControlNet",
            hint=_HINT,
        )
    pooled = "shuffle" in path.stem.casefold()  # no file says so
    config = _config(family, named, global_pool_conditions=pooled)
    configs.check(PART, config, path)
    return ControlNet(name=path.stem, family=family, component=_component(path, config, header), path=str(path))


Shapes = Mapping[str, tuple[int, ...]]  # by diffusers' names


def _named(header: Header) -> dict[str, tuple[int, ...]]:
    origins = keys.rename(PART, header.tensors)
    return {name: header.tensors[origin.name].shape for name, origin in origins.items()}


def _complete(named: Shapes) -> bool:
    """That what its config is read from is there, and of the right kind."""
    wanted = ("conv_in.weight", *(f"controlnet_cond_embedding.{name}.weight" for name in _EMBEDDING))
    return all(len(named.get(name, ())) == 4 for name in wanted)


_EMBEDDING = ("conv_in", "blocks.1", "blocks.3", "blocks.5")  # the layers that widen


def _component(path: Path, config: Mapping[str, Any], header: Header) -> Component:
    used = {origin.name for origin in keys.rename(PART, header.tensors).values()}
    stored = part_of((name, tensor) for name, tensor in header.tensors.items() if name in used)
    described = parameters_of(PART, config)
    if stored is None or stored.parameters < described:
        raise BadFile(
            f"{show(path)} is a variant of a ControlNet that sdcli cannot draw with: it has "
            f"{(stored.parameters if stored else 0) / 1e6:,.1f} of {described / 1e6:,.1f} million parameters",
            hint=_HINT,
        )
    return Component(
        parameters=described, stored_bytes=stored.bytes, stored_dtype=stored.dtype, config=config, files=(str(path),)
    )


def _config(family: str, named: Shapes, **changes: Any) -> dict[str, Any]:
    """That of the family's ControlNets, with as many attentions as it has: some of SDXL's have fewer, or none."""
    usual = control_walk.config_of(data.component_config(family, "unet"), **changes)
    widths = [named[f"controlnet_cond_embedding.{name}.weight"][0] for name in _EMBEDDING]
    channels = named["controlnet_cond_embedding.conv_in.weight"][1]
    usual |= {"conditioning_embedding_out_channels": widths, "conditioning_channels": channels}
    levels = range(len(usual["down_block_types"]))
    kinds = ["CrossAttnDownBlock2D" if _has(named, f"down_blocks.{level}.") else "DownBlock2D" for level in levels]
    depths = [_depth(named, f"down_blocks.{level}.attentions.0.") for level in levels]
    if not _has(named, "mid_block."):
        usual["mid_block_type"] = "UNetMidBlock2D"
    else:
        depths[-1] = _depth(named, "mid_block.attentions.0.")  # the last level's is the middle's too
    if kinds != usual["down_block_types"]:
        usual["down_block_types"] = kinds
    if "transformer_layers_per_block" in usual:
        known = usual["transformer_layers_per_block"]
        usual["transformer_layers_per_block"] = [
            depth if "Attn" in kind or level == levels[-1] else known[level]
            for level, kind, depth in zip(levels, kinds, depths, strict=True)
        ]
    return usual


def _has(named: Iterable[str], start: str) -> bool:
    return any(name.startswith(start + "attentions.") for name in named)


def _depth(named: Iterable[str], start: str) -> int:
    prefix = start + "transformer_blocks."
    numbers = [name[len(prefix) :].split(".")[0] for name in named if name.startswith(prefix)]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _other(path: Path, kind: Kind) -> BadFile:
    title = TITLES.get(kind.kind, kind.kind)
    if kind.kind in _ALIKE:
        base = f" for {TITLES[kind.family]}" if kind.family in TITLES else ""
        return BadFile(f"{show(path)} is {title}{base}{_NOT_USED} yet", hint=_HINT)
    seen = f"; it contains {', '.join(show(name, 80) for name in kind.seen)}" if kind.seen else ""
    return BadFile(f"{show(path)} is {title}, not a ControlNet{seen}", hint=_HINT)


_ALIKE = ("controlnet-union", "controlnet-xs", "control-lora", "controllllite", "controlnet-difference", "t2i-adapter")
