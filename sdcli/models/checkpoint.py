"""A single .safetensors file: a whole checkpoint becomes a Model, anything else is named for what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.errors import BadFile, SdcliError
from sdcli.models.families import find
from sdcli.models.folder import shipped_scheduler
from sdcli.models.headers import read_header
from sdcli.models.kinds import DRAWN, TITLES, Kind, kind_of
from sdcli.models.model import Component, Model
from sdcli.terminal import show


def read(path: Path) -> Model:
    header = read_header(path)
    kind = kind_of(header)
    if kind.kind not in DRAWN:
        raise _other(path, kind)
    return _model(path, kind, header.size)


def _model(path: Path, kind: Kind, size: int) -> Model:
    missing = [name for name in find(kind.family).components if name not in kind.parts]
    if missing:
        raise BadFile(
            f"{show(path)} has no {', '.join(missing)}: not a whole checkpoint", hint='sdcli generate "a cat" -m sd15'
        )
    scheduler: dict[str, Any] = dict(shipped_scheduler(kind.family))
    if kind.prediction:
        scheduler["prediction_type"] = kind.prediction
    if kind.zero_snr:
        scheduler.update(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    components = {
        name: Component(
            parameters=kind.parts[name].parameters, stored_bytes=kind.parts[name].bytes,
            stored_dtype=kind.parts[name].dtype, config=data.component_config(kind.family, name), files=(str(path),),
        )
        for name in find(kind.family).components
    }  # fmt: skip
    return Model(
        name=path.stem, kind=kind.kind, family=kind.family, source="file", prediction=kind.prediction or "epsilon",
        zero_snr=kind.zero_snr, disk_bytes=size, components=components, path=str(path), layout="original",
        scheduler=scheduler,
    )  # fmt: skip


def _other(path: Path, kind: Kind) -> SdcliError:
    """Named, never guessed."""
    title = TITLES.get(kind.kind, kind.kind)
    if kind.kind == "lora":
        base = f" for {TITLES[kind.family]}" if kind.family in TITLES else ""
        return BadFile(
            f"{show(path)} is a LoRA{base}, not a model to draw with",
            hint=f"sdcli inspect-unet {kind.family or 'sd15'} --lora {show(path, 200)}",
        )
    seen = f"; it holds {', '.join(show(name, 80) for name in kind.seen)}" if kind.seen else ""
    return BadFile(
        f"{show(path)} is {title}, which sdcli does not draw with{seen}", hint='sdcli generate "a cat" -m sd15'
    )
