"""A single .safetensors file: a whole checkpoint becomes a Model; anything else is identified and refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.errors import BadFile, SdcliError
from sdcli.models import configs, edm
from sdcli.models.families import find
from sdcli.models.folder import shipped_scheduler
from sdcli.models.headers import Header, read_header
from sdcli.models.kinds import DRAWN, EDM, TITLES, Kind, channels_of, kind_of
from sdcli.models.model import Component, Model
from sdcli.models.shipped import parameters_of
from sdcli.terminal import show

# what a family's model is used with
_USED_WITH = ("lora", "embedding", "controlnet", "controlnet-union", "t2i-adapter", "ip-adapter", "unet")
PARTS = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}
_ANOTHER = "-m sd15"


def read(path: Path) -> Model:
    header = read_header(path)
    kind = kind_of(header)
    if kind.kind not in DRAWN:
        raise _other(path, kind)
    _check_parts(path, kind)
    return _model(path, kind, header)


def for_inspection(path: Path) -> Model | None:
    """The same, even if a few tensors are missing; None if it is not a checkpoint to draw with.

    A file that lacks more than a tenth of a part is another model, not a damaged one."""
    header = read_header(path)
    kind = kind_of(header)
    whole = kind.kind in DRAWN and all(
        name in kind.parts and kind.parts[name].parameters >= 0.9 * usual for name, usual in _usual(kind)
    )
    return _model(path, kind, header) if whole else None


def _model(path: Path, kind: Kind, header: Header) -> Model:
    scheduler: dict[str, Any] = dict(edm.SCHEDULER if kind.kind == EDM else shipped_scheduler(kind.family))
    if kind.prediction:
        scheduler["prediction_type"] = kind.prediction
    if kind.zero_snr:
        # The last step of such a model starts from pure noise, which leading steps never reach.
        scheduler.update(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    described = _configs(kind)
    if kind.kind == EDM:
        described["vae"] |= edm.latents(header)
        configs.check("vae", described["vae"], path)
    components = {
        name: Component(
            parameters=parameters_of(name, config), stored_bytes=kind.parts[name].bytes,
            stored_dtype=kind.parts[name].dtype, config=config, files=(str(path),),
        )
        for name, config in described.items()
    }  # fmt: skip
    return Model(
        name=path.stem, kind=kind.kind, family=kind.family, source="file", prediction=scheduler["prediction_type"],
        zero_snr=kind.zero_snr, empty_is_zeros=find(kind.family).empty_is_zeros, disk_bytes=header.size,
        components=components, path=str(path), layout="original", scheduler=scheduler,
        defaults=edm.DEFAULTS if kind.kind == EDM else {},
    )  # fmt: skip


def _check_parts(path: Path, kind: Kind) -> None:
    """Whole, and of the shape the shipped configs describe: pruned relatives have the same widths, but fewer blocks."""
    components = find(kind.family).components
    missing = [PARTS[name] for name in components if name not in kind.parts]
    if missing:
        raise BadFile(f"{show(path)} is incomplete: it has no {' and no '.join(missing)}", hint=_ANOTHER)
    for name, usual in _usual(kind):
        parameters = kind.parts[name].parameters
        if parameters < usual:
            raise BadFile(
                f"{show(path)} is a variant of {TITLES[kind.family]} that sdcli cannot draw with: "
                f"its {PARTS[name]} has {parameters / 1e6:,.1f} of {usual / 1e6:,.1f} million parameters",
                hint=_ANOTHER,
            )


def _configs(kind: Kind) -> dict[str, dict[str, Any]]:
    """The shipped ones; a UNet that was trained to repaint takes more channels in."""
    found = {name: dict(data.component_config(kind.family, name)) for name in find(kind.family).components}
    return {**found, "unet": {**found["unet"], "in_channels": channels_of(kind.kind)}}


def _usual(kind: Kind) -> Iterator[tuple[str, int]]:
    """Parameters of each part, as the shipped configs describe it."""
    for name, config in _configs(kind).items():
        yield name, parameters_of(name, config)


def _use_of_lora(path: Path, family: str) -> str:
    """A command that uses it with its base model; one that inspects it where there is no such model."""
    if family in DRAWN and find(family).known is not None:
        return f'the same command with -m {family} --lora "{show(path, 300)}"'
    return f'sdcli inspect-unet sd15 --lora "{show(path, 300)}"'


def _other(path: Path, kind: Kind) -> SdcliError:
    """The error that says what the file is; never a guess."""
    title = TITLES.get(kind.kind, kind.kind)
    base = f" for {TITLES[kind.family]}" if kind.kind in _USED_WITH and kind.family in TITLES else ""
    if kind.kind == "lora":
        return BadFile(f"{show(path)} is {title}{base}, not a model to draw with", hint=_use_of_lora(path, kind.family))
    if kind.kind == "vae":
        title += f" with {kind.latent_channels} latent channels"
    seen = f"; it contains {', '.join(show(name, 80) for name in kind.seen)}" if kind.seen else ""
    return BadFile(f"{show(path)} is {title}{base}, which sdcli cannot draw with{seen}", hint=_ANOTHER)
