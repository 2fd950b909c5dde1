"""ControlNets and T2I-Adapters: a diffusers folder or a single file becomes a value; what only sounds so is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.errors import BadFile
from sdcli.models import configs, control_walk, folder, keys, t2i_adapter, t2i_walk
from sdcli.models.families import families, find, of_unet
from sdcli.models.headers import Header, read_header
from sdcli.models.hub_name import COMPONENT
from sdcli.models.kinds import CONTROL, TITLES, Kind, controlnet_family, kind_of, part_of
from sdcli.models.model import Component, Model
from sdcli.models.shipped import parameters_of
from sdcli.schema import transient
from sdcli.terminal import show

PART, UNION = "controlnet", "controlnet_union"
_HINT = "a ControlNet or a T2I-Adapter for Stable Diffusion 1.5, Stable Diffusion 2 or SDXL, as .safetensors"
_CALLED = {PART: "ControlNet", UNION: "ControlNet Union", t2i_adapter.PART: "T2I-Adapter"}
# What must agree for its results to fit a UNet's.
_FITTING = ("block_out_channels", "layers_per_block", "addition_embed_type", "projection_class_embeddings_input_dim")


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """Or a T2I-Adapter: `part` says which."""

    name: str  # short, fit to show
    family: str  # whose models it steers
    component: Component
    part: str = PART  # of model.NETS
    path: str = transient(default="")

    @property
    def called(self) -> str:
        return _CALLED[self.part]

    @property
    def pooled(self) -> bool:
        """Whether it tells what an image is like and not where: then it steers the prompts' side of guidance only."""
        return self.component.config.get("global_pool_conditions") is True


def parts(nets: Iterable[ControlNet]) -> Iterator[str]:
    """What their components are called: each kind is counted by itself."""
    seen: dict[str, int] = {}
    for net in nets:
        seen[net.part] = seen.get(net.part, 0) + 1
        yield net.part if seen[net.part] == 1 else f"{net.part}_{seen[net.part]}"


def read(path: Path) -> ControlNet:
    return _in_folder(path) if path.is_dir() else _in_file(path)


def check(header: Header, model: Model) -> None:
    """Refuse what is no net, or one for another family, by its header alone."""
    kind = kind_of(header)
    if kind.kind not in _BY_KIND:
        raise _other(header.path, kind)
    if kind.family and model.family in TITLES and kind.family != model.family:
        title, base = TITLES[kind.kind], TITLES.get(kind.family, kind.family)
        raise BadFile(
            f"{show(header.path)} is {title} for {base}; {show(model.name, 80)} is {_title(model.family)}",
            hint=f"{title} for {_title(model.family)}",
        )


def check_fits(net: ControlNet, model: Model) -> None:
    """That it was made for models such as this one."""
    if net.family != model.family:
        raise BadFile(
            f"{show(net.name, 80)} is a {net.called} for {_title(net.family)}; {show(model.name, 80)} is "
            f"{_title(model.family)}",
            hint=f"a {net.called} for {_title(model.family)}" if model.family in _families() else _HINT,
        )
    misfit = _misfit(net, model)
    if misfit:
        raise BadFile(
            f"{show(net.name, 80)} was made for another UNet than that of {show(model.name, 80)}: {misfit}",
            hint=f"a {net.called} for {_title(model.family)}",
        )


def _misfit(net: ControlNet, model: Model) -> str:
    own, unet = net.component.config, model.components["unet"].config
    if net.part == t2i_adapter.PART:
        return t2i_adapter.misfit(own, unet)
    names = [*_FITTING, *(["cross_attention_dim"] if _attends(own) else [])]
    differing = [name for name in names if own.get(name) != unet.get(name)]
    if own.get("in_channels", 4) != model.components["vae"].config.get("latent_channels", 4):
        differing.append("in_channels")
    if not differing:
        return ""
    return f"its {differing[0]} is {show(own.get(differing[0]), 60)}, not {show(unet.get(differing[0]), 60)}"


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
    part = _part(path, config, file)
    component = folder.component_at(path, part, config)
    return ControlNet(name=path.name, family=_family(part, config), component=component, part=part, path=str(path))


def _part(path: Path, config: Mapping[str, Any], file: Path) -> str:
    """Which kind of net a config is of, if sdcli draws with it."""
    named = str(config.get("_class_name", control_walk.CLASS))
    part = _PARTS.get(named)
    if part is None:
        raise BadFile(f"{show(path)} is {_CLASSES.get(named) or show(named, 60)}{_NOT_USED}", hint=_HINT)
    configs.check(part, config, file)
    if _family(part, config) not in _families():
        raise BadFile(f"{show(path)} is a {_CALLED[part]} for no model that sdcli draws with", hint=_HINT)
    return part


_PARTS = {control_walk.CLASS: PART, control_walk.UNION: UNION, t2i_walk.CLASS: t2i_adapter.PART}
_NOT_USED = ", which sdcli cannot draw with"
_CLASSES = {
    "ControlNetXSAdapter": "a ControlNet-XS",
    "UNetControlNetXSModel": "a ControlNet-XS", "MultiAdapter": "several T2I-Adapters in one",
    "SD3ControlNetModel": "a ControlNet for Stable Diffusion 3", "FluxControlNetModel": "a ControlNet for FLUX",
    "SparseControlNetModel": "a ControlNet for videos", "UNet2DConditionModel": "a UNet",
}  # fmt: skip


def _family(part: str, config: Mapping[str, Any]) -> str:
    if part == t2i_adapter.PART:
        return t2i_adapter.family_of(config)
    family = of_unet(config)
    return family.name if family is not None else ""


# --- a single file


def _in_file(path: Path) -> ControlNet:
    header = read_header(path)
    beside = path.parent / "config.json"
    if path.name in COMPONENT and beside.is_file():  # of a diffusers folder
        config = folder.read_json(beside)
        part = _part(path.parent, config, beside)
        folder.describes(part, config, path.parent)
        component = _component(path, part, config, header)
        return ControlNet(
            name=path.parent.name, family=_family(part, config), component=component, part=part, path=str(path)
        )
    return _of_header(path, header)


def _of_header(path: Path, header: Header) -> ControlNet:
    kind = kind_of(header)
    if kind.kind == "t2i-adapter":
        return _adapter_in(path, header)
    beside = any(name.startswith(CONTROL) for name in header.tensors)  # a whole model may be in it too
    if kind.kind not in _BY_KIND and not (beside and kind.kind in TITLES and kind.parts.keys() & {"unet", "vae"}):
        raise _other(path, kind)
    part = _BY_KIND.get(kind.kind, PART)
    named = _named(header, part)
    family = controlnet_family(named)
    if family not in _families() or not _complete(named, part):
        raise BadFile(
            f"{show(path)} is a {_CALLED[part]} for {TITLES.get(family, 'no model')} that sdcli draws with"
            if family not in _families()
            else f"{show(path)} is an incomplete {_CALLED[part]}",
            hint=_HINT,
        )
    pooled = "shuffle" in path.stem.casefold()  # no file says so
    config = _config(family, named, part, global_pool_conditions=pooled)
    configs.check(part, config, path)
    component = _component(path, part, config, header)
    return ControlNet(name=path.stem, family=family, component=component, part=part, path=str(path))


_BY_KIND = {"controlnet": PART, "controlnet-union": UNION, "t2i-adapter": t2i_adapter.PART}


def _adapter_in(path: Path, header: Header) -> ControlNet:
    config = t2i_adapter.config_of(_named(header, t2i_adapter.PART))
    if config is None:
        raise BadFile(f"{show(path)} is a T2I-Adapter, but none that sdcli can draw with", hint=_HINT)
    component = _component(path, t2i_adapter.PART, config, header)
    family = t2i_adapter.family_of(config)
    return ControlNet(name=path.stem, family=family, component=component, part=t2i_adapter.PART, path=str(path))


Shapes = Mapping[str, tuple[int, ...]]  # by diffusers' names


def _named(header: Header, part: str) -> dict[str, tuple[int, ...]]:
    origins = keys.rename(part, header.tensors)
    return {name: header.tensors[origin.name].shape for name, origin in origins.items()}


def _complete(named: Shapes, part: str) -> bool:
    """That what its config is read from is there, and of the right kind."""
    wanted = ("conv_in.weight", *(f"controlnet_cond_embedding.{name}.weight" for name in _EMBEDDING))
    own = {"task_embedding": 2, "spatial_ch_projs.weight": 2} if part == UNION else {}
    return all(len(named.get(name, ())) == rank for name, rank in (dict.fromkeys(wanted, 4) | own).items())


_EMBEDDING = ("conv_in", "blocks.1", "blocks.3", "blocks.5")  # the layers that widen


def _component(path: Path, part: str, config: Mapping[str, Any], header: Header) -> Component:
    used = {origin.name for origin in keys.rename(part, header.tensors).values()}
    stored = part_of((name, tensor) for name, tensor in header.tensors.items() if name in used)
    described = parameters_of(part, config)
    if stored is None or stored.parameters < described:
        raise BadFile(
            f"{show(path)} is a variant of a {_CALLED[part]} that sdcli cannot draw with: it has "
            f"{(stored.parameters if stored else 0) / 1e6:,.1f} of {described / 1e6:,.1f} million parameters",
            hint=_HINT,
        )
    return Component(
        parameters=described, stored_bytes=stored.bytes, stored_dtype=stored.dtype, config=config, files=(str(path),)
    )


def _config(family: str, named: Shapes, part: str, **changes: Any) -> dict[str, Any]:
    """That of the family's ControlNets, with as many attentions as it has: some of SDXL's have fewer, or none."""
    unet = data.component_config(family, "unet")
    if part == UNION:
        usual = control_walk.union_config_of(unet, **_told(named), **changes)
    else:
        usual = control_walk.config_of(unet, **changes)
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


def _told(named: Shapes) -> dict[str, int]:
    """Of a Union: how many kinds of images it is told of, and how it compares them."""
    kinds, width = named["task_embedding"]
    return {
        "num_control_type": kinds, "num_trans_channel": width, "num_proj_channel": named["spatial_ch_projs.weight"][0],
        "num_trans_layer": sum(f"transformer_layes.{layer}.ln_1.weight" in named for layer in range(64)),
    }  # fmt: skip


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
        return BadFile(f"{show(path)} is {title}{base}{_NOT_USED}", hint=_HINT)
    seen = f"; it contains {', '.join(show(name, 80) for name in kind.seen)}" if kind.seen else ""
    return BadFile(f"{show(path)} is {title}, not a ControlNet{seen}", hint=_HINT)


_ALIKE = ("controlnet-xs", "control-lora", "controllllite", "controlnet-difference")
