"""What a LoRA touches: its layers matched by name and shape against a base model, its ranks and alphas."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from sdcli import data, schema
from sdcli.inspect import figures, tables
from sdcli.inspect.facts import Source
from sdcli.inspect.guess import FAMILIES
from sdcli.inspect.numbers import scalar
from sdcli.inspect.source import LoraFile
from sdcli.models import lora
from sdcli.models.families import find
from sdcli.models.headers import Tensor
from sdcli.models.kinds import DRAWN, TITLES
from sdcli.models.lora import Layer
from sdcli.schema import renamed
from sdcli.terminal import cells, disk_text, fit, show


@dataclass(frozen=True, kw_only=True)
class Touched:
    """One layer of the base that the LoRA adds to."""

    name: str  # its diffusers name; the file's name if no layer matches
    rank: int | None
    alpha: float | None
    parameters: int
    kind: str  # lora | loha | lokr | full | other
    fits: bool = renamed("matched")


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    file: str
    base: str
    fits: bool
    made_for: str  # the known family that most of its layers fit
    bytes: int
    touched: tuple[Touched, ...]
    unmatched: tuple[str, ...]
    decomposed: int  # layers with DoRA magnitudes
    unet_layers: int
    text_layers: int
    of: int  # layers of the base that a LoRA could touch

    @property
    def ranks(self) -> dict[str, int]:
        counted = Counter(one.rank for one in self.touched if one.rank is not None)
        return {str(rank): counted[rank] for rank in sorted(counted)}


def inspect(file: LoraFile, base: Source | None) -> LoraReport:
    """The LoRA compared with `base`, or with the family it fits best if None."""
    modules = {
        module: {part: file.header.tensors[name] for part, name in parts.items()}
        for module, parts in lora.modules(file.header.tensors).items()
    }
    scored = {family: _fitting(modules, _family_layers(family)) for family in FAMILIES}
    made_for = max(FAMILIES, key=lambda family: scored[family]) if any(scored.values()) else file.family
    if base is None:
        name, layers = made_for or "sd15", _family_layers(made_for if made_for in FAMILIES else "sd15")
    else:
        name, layers = base.name, _layers(base.config, base.family)
    with file.path.open("rb") as handle:
        touched = [
            _touched(module, parts, layers.get(module), handle, file.header.data_start)
            for module, parts in modules.items()
        ]
    unmatched = [module for module, one in zip(modules, touched, strict=True) if not one.fits]
    matched = [one for one in touched if one.fits]
    return LoraReport(
        file=str(file.path),
        base=name,
        fits=bool(matched) and not unmatched,
        made_for=made_for,
        bytes=file.header.size,
        touched=tuple(touched),
        unmatched=tuple(unmatched),
        decomposed=sum(1 for parts in modules.values() if {"dora_scale", "lora_magnitude_vector"} & set(parts)),
        unet_layers=sum(1 for one in matched if not one.name.startswith("text_encoder")),
        text_layers=sum(1 for one in matched if one.name.startswith("text_encoder")),
        of=len({layer.name for layer in layers.values() if layer.component == "unet"}),
    )


# layers of a base


@functools.cache
def _family_layers(family: str) -> Mapping[str, Layer]:
    return _layers(data.component_config(family, "unet"), family)


def _layers(config: Mapping[str, Any], family: str) -> dict[str, Layer]:
    encoders = [encoder.part for encoder in find(family).encoders] if family in DRAWN else []
    return lora.layers({"unet": config} | {name: data.component_config(family, name) for name in encoders})


# the LoRA's modules


def _fitting(modules: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer]) -> int:
    return sum(1 for name, parts in modules.items() if name in layers and lora.fits(parts, layers[name].shape))


def _touched(module: str, parts: Mapping[str, Tensor], layer: Layer | None, handle: Any, start: int) -> Touched:
    kind, rank = _kind(parts)
    alpha = parts.get("alpha")
    scale = scalar(handle, start + alpha.begin, start + alpha.end, alpha.dtype) if alpha else None
    return Touched(
        name=layer.shown if layer else module,
        rank=rank,
        alpha=scale,
        parameters=sum(tensor.parameters for part, tensor in parts.items() if part != "alpha"),
        kind=kind,
        fits=layer is not None and lora.fits(parts, layer.shape),
    )


def _kind(parts: Mapping[str, Tensor]) -> tuple[str, int | None]:
    down, _ = lora.factors(parts)
    if down is not None:
        return "lora", down.shape[0] if down.shape else None
    for kind, part in (("loha", "hada_w1_b"), ("lokr", "lokr_w2_b"), ("lokr", "lokr_w1_b")):
        if part in parts:
            return kind, parts[part].shape[0] if parts[part].shape else None
    if "lokr_w1" in parts:
        return "lokr", None
    return ("full", None) if {"diff", "diff_b"} & set(parts) else ("other", None)


# shown


class LoraDocument(TypedDict):
    """`ranks` counts the layers of each rank; `made_for` is the known family that most of them fit."""

    schema: Literal["sdcli.lora/1"]
    file: str
    base: str
    fits: bool
    made_for: str | None
    bytes: int
    ranks: dict[str, int]
    matched: int
    unmatched: list[str]
    touched: list[Touched]


def to_json(report: LoraReport) -> LoraDocument:
    return {
        "schema": "sdcli.lora/1",
        "file": report.file,
        "base": report.base,
        "fits": report.fits,
        "made_for": report.made_for or None,
        "bytes": report.bytes,
        "ranks": report.ranks,
        "matched": report.unet_layers + report.text_layers,
        "unmatched": list(report.unmatched),
        "touched": schema.to_json(report.touched),
    }


def text(report: LoraReport, width: int, *, every: bool = False) -> list[str]:
    """About twelve lines; with `every`, every layer too."""
    name = show(report.file.replace("\\", "/").rpartition("/")[2], 60)
    base = TITLES.get(report.made_for, "an unknown model")
    parameters = sum(one.parameters for one in report.touched)
    lines = [f"LoRA {name} · made for {base} · {disk_text(report.bytes)}, {parameters:,} parameters"]
    matched = report.unet_layers + report.text_layers
    lines.append(
        f"{matched} of its {len(report.touched)} layers fit {show(report.base, 40)}: "
        f"{report.unet_layers} of {report.of} in the UNet, {report.text_layers} in text encoders"
    )
    lines.append(f"rank {_listed(report.ranks)}{_alphas(report)}")
    kinds = Counter(one.kind for one in report.touched)
    if set(kinds) - {"lora"} or report.decomposed:
        summary = [f"{kind} {count}" for kind, count in kinds.most_common()]
        summary += [f"DoRA magnitudes on {report.decomposed}"] if report.decomposed else []
        lines.append("kinds: " + ", ".join(summary))
    if not report.fits:
        lines += _misfit(report)
    lines += ["", *_touched_table(report, width)]
    if every:
        lines += [""] + [
            f"{show(one.name, 200)}  rank {one.rank or '–'}  alpha {one.alpha if one.alpha is not None else '–'}  "
            f"{one.parameters:,}" + ("" if one.fits else "  no match")
            for one in report.touched
        ]
    return [line if every else fit(line, width) for line in lines]


def _listed(ranks: Mapping[str, int]) -> str:
    if not ranks:
        return "unknown"
    most = sorted(ranks.items(), key=lambda item: -item[1])
    if len(most) == 1:
        return most[0][0]
    return ", ".join(f"{rank} ({count})" for rank, count in most[:6]) + (" …" if len(most) > 6 else "")


def _alphas(report: LoraReport) -> str:
    counted = Counter(one.alpha for one in report.touched if one.alpha is not None)
    if not counted:
        return " · no alpha stored, so alpha = rank"
    shown = ", ".join(f"{alpha:g}" for alpha, _ in counted.most_common(4))
    return f" · alpha {shown}" + (" …" if len(counted) > 4 else "")


def _misfit(report: LoraReport) -> list[str]:
    if report.made_for and report.made_for != report.base and report.base in FAMILIES:
        return [f"wrong family: made for {TITLES[report.made_for]}, not for {TITLES[report.base]}"]
    names = ", ".join(show(name, 70) for name in report.unmatched[:2])
    more = f" and {len(report.unmatched) - 2} more" if len(report.unmatched) > 2 else ""
    return [f"no match: {names}{more}"]


def _touched_table(report: LoraReport, width: int) -> list[str]:
    """Layers and parameters per block, and the parts they belong to."""
    blocks: dict[str, list[Touched]] = {}
    for one in report.touched:
        if one.fits:
            blocks.setdefault(_block(one.name), []).append(one)
    if not blocks:
        return ["no layer fits"]
    room = max(cells(figures.short(block)) for block in blocks)
    lines = [f"{'block':<{room}}  layers  parameters  parts"]
    for block in sorted(blocks, key=_order):
        ones = blocks[block]
        parts = Counter(_part(one.name) for one in ones)
        listed = ", ".join(f"{part} {count}" for part, count in parts.most_common())
        total = sum(one.parameters for one in ones)
        lines.append(fit(f"{figures.short(block):<{room}}  {len(ones):>6}  {total:>10,}  {listed}", width))
    return lines


def _part(name: str) -> str:
    return "text" if name.startswith("text_encoder") else tables.part(name).removesuffix(" projections")


def _block(name: str) -> str:
    words = name.split(".")
    return ".".join(words[:2]) if words[0] in ("down_blocks", "up_blocks") else words[0]


def _order(block: str) -> tuple[int, str]:
    order = ("time", "add", "class", "conv_in", "down", "mid", "up", "conv_out", "text")
    return next((i for i, start in enumerate(order) if block.startswith(start)), len(order)), block
