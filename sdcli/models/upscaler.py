"""Upscalers of ESRGAN's kind: a single file becomes a value; all that only enlarges images too is refused."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import BadFile, Unsafe
from sdcli.models import keys, upscaler_walk
from sdcli.models.expected import tensors_of
from sdcli.models.headers import Header, read_header
from sdcli.models.kinds import TITLES, kind_of, part_of
from sdcli.models.model import Component
from sdcli.models.upscaler_walk import CHANNELS, COMPACT, RRDB
from sdcli.schema import transient
from sdcli.terminal import quoted, show

PART = "upscaler"
HINT = "an ESRGAN or Real-ESRGAN upscaler, as .safetensors"
MOST_DOUBLINGS = 3
FOLDS = (1, 2, 4)  # pixels a side that a net may fold into one
SCALES = (1, 2, 3, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Upscaler:
    name: str  # short, fit to show
    component: Component
    path: str = transient(default="")

    @property
    def scale(self) -> int:
        return scale_of(self.component)


def scale_of(component: Component) -> int:
    return int(component.config["scale"])


def part(number: int) -> str:
    """What the components of several are called, counted from 0."""
    return PART if number == 0 else f"{PART}_{number + 1}"


def read(path: Path) -> Upscaler:
    try:
        header = read_header(path)
    except Unsafe as error:  # as most of them are passed around
        error.hint = (
            f"the .safetensors file of the same model; or make it, without running code from it:\n{_made(path)}"
        )
        raise
    origins = keys.rename(PART, header.tensors)
    named = {name: header.tensors[origin.name].shape for name, origin in origins.items()}
    config = _rrdb(named) or _compact(named)
    if config is None:
        raise _other(path, header)
    _check_whole(path, config, named)
    stored = part_of((origin.name, header.tensors[origin.name]) for origin in origins.values())
    assert stored is not None
    component = Component(
        parameters=stored.parameters, stored_bytes=stored.bytes, stored_dtype=stored.dtype, config=config,
        files=(str(path),),
    )  # fmt: skip
    return Upscaler(name=path.stem, component=component, path=str(path))


def _made(path: Path) -> str:
    """The line that makes a .safetensors file of a pickle, which is read as numbers alone."""
    source, target = repr(str(path)), repr(str(path.with_suffix(".safetensors")))
    code = (
        f"import torch, safetensors.torch as s; t = torch.load({source}, map_location='cpu', weights_only=True); "
        "t = t.get('params_ema', t.get('params', t)); "
        f"s.save_file({{k: v.contiguous() for k, v in t.items()}}, {target})"
    )
    return f"{quoted(sys.executable)} -c {quoted(code)}"


# --- what it is, by the shapes of its tensors

Shapes = Mapping[str, tuple[int, ...]]  # by the names that the net uses


def _rrdb(named: Shapes) -> dict[str, Any] | None:
    first, growing = named.get("conv_first.weight", ()), named.get("body.0.rdb1.conv1.weight", ())
    if len(first) != 4 or len(growing) != 4:
        return None
    folded = math.isqrt(max(1, first[1] // CHANNELS))
    doublings = sum(1 for name in named if re.fullmatch(r"conv_up\d\.weight", name))
    scale = 2**doublings / folded
    if folded not in FOLDS or first[1] != CHANNELS * folded**2 or doublings > MOST_DOUBLINGS or scale not in SCALES:
        return None
    blocks = max(int(match[1]) for name in named if (match := re.match(r"body\.(\d{1,3})\.", name)))
    return {
        "architecture": RRDB, "scale": int(scale), "features": first[0], "growth": growing[0], "blocks": blocks + 1,
        "doublings": doublings, "unshuffle": folded,
    }  # fmt: skip


def _compact(named: Shapes) -> dict[str, Any] | None:
    first, slopes = named.get("body.0.weight", ()), named.get("body.1.weight", ())
    last = max(
        (int(match[1]) for name in named if (match := re.fullmatch(r"body\.(\d{1,3})\.weight", name))), default=0
    )
    result = named.get(f"body.{last}.weight", ())
    if len(first) != 4 or first[1] != CHANNELS or slopes != first[:1] or len(result) != 4 or last < 4 or last % 2:
        return None
    scale = math.isqrt(result[0] // CHANNELS)
    if scale not in SCALES or result[0] != CHANNELS * scale**2:
        return None
    return {"architecture": COMPACT, "scale": scale, "features": first[0], "convolutions": last // 2 - 1}


def _check_whole(path: Path, config: Mapping[str, Any], named: Shapes) -> None:
    """Every tensor that its kind has, in the shape that the others require; and no more."""
    shapes = tensors_of(upscaler_walk.analyse(config, height=8, width=8).leaves)
    missing = next((name for name in shapes if name not in named), None)
    if missing is not None:
        raise BadFile(f"{show(path)} is an incomplete upscaler: {show(missing, 80)} not found", hint=HINT)
    odd = next((name for name in shapes if named[name] != shapes[name]), None)
    odd = odd or next((name for name in named if name not in shapes), None)
    if odd is not None:
        raise BadFile(
            f"{show(path)} is a variant of ESRGAN that sdcli cannot use: its {show(odd, 80)} has the shape "
            f"{list(named[odd])}",
            hint=HINT,
        )


# --- what it is instead

# The architectures in circulation beside these, each by a tensor that only it has.
_OTHERS = (
    ("HAT", r"residual_group\.overlap_attn\."),
    ("Swin2SR", r"residual_group\.blocks\.\d+\.attn\.(cpb_mlp|logit_scale)"),
    ("SwinIR", r"residual_group\.blocks\.\d+\.attn\.relative_position_"),
    ("DAT", r"blocks\.\d+\.attn\.channel_interaction\."),
    ("OmniSR", r"residual_layer\.\d+\.residual_layer\.\d+\."),
    ("SPAN", r"block_1\.c1_r\."),
    ("ESRGAN+", r"RDB\d\.conv1x1\."),
)


def _other(path: Path, header: Header) -> BadFile:
    for title, pattern in _OTHERS:
        if any(re.search(pattern, name) for name in header.tensors):
            return BadFile(f"{show(path)} is {title}, an upscaler of a kind that sdcli cannot use", hint=HINT)
    kind = kind_of(header)
    if kind.kind not in (PART, "unknown") and kind.kind in TITLES:
        return BadFile(f"{show(path)} is {TITLES[kind.kind]}, not an upscaler", hint=HINT)
    seen = ", ".join(show(name, 80) for name in list(header.tensors)[:3])
    return BadFile(f"{show(path)} is not an ESRGAN-type upscaler; it contains {seen or 'nothing'}", hint=HINT)
