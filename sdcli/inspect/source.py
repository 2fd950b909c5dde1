"""Finds the UNet meant: a known family, a Hub id in the cache, a folder, a checkpoint, a bare UNet or a config.json.

Of weights only the header is read. What stands beside the UNet, is missing or has another shape, is named.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli import data, reading
from sdcli.errors import BadFile, ModelMissing, SdcliError
from sdcli.inspect import guess
from sdcli.inspect.facts import Mismatch, Source, Stored
from sdcli.models import headers, hub_cache, keys, kinds
from sdcli.models.folder import read_json
from sdcli.models.headers import NAMES, Header, Tensor
from sdcli.models.unet import CLASS_NAMES, analyse
from sdcli.terminal import disk_text, show

KNOWN = ("sd15", "sdxl", "sd2", "refiner", "unet2015", "builtin")
REPOSITORIES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "refiner",
    "stabilityai/stable-diffusion-2-1": "sd2",
}
UNKNOWN = "UNet of its own shape"
SHIPPED = "from the shipped config, nothing downloaded"


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA given where a model was asked for."""

    path: Path
    header: Header
    family: str


def find(model: str) -> Source | LoraFile:
    """What `model` names; ModelMissing when it is nowhere, BadFile when it is there but unusable."""
    name = model.strip()
    if name.casefold() in KNOWN:
        return known(name.casefold())
    if name.casefold() == "sd21":  # 2.0 and 2.1 have the same UNet
        return known("sd2")
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _folder(path, path.name or str(path), "folder")
        if path.exists():
            return _file(path)
    except OSError as error:
        raise ModelMissing(
            f"{show(name, 200)} cannot be opened: {show(error.strerror or error)}", hint="sdcli inspect-unet sd15"
        ) from None
    if _looks_like_hub_id(name):
        return _hub(name)
    raise _nowhere(name)


def find_lora(path: str) -> LoraFile:
    """The LoRA in a file; BadFile saying what it is when it is none."""
    file = Path(path).expanduser()
    header = headers.read_header(file)
    kind = kinds.kind_of(header)
    if kind.kind != "lora":
        title = kinds.TITLES.get(kind.kind, kind.kind)
        raise BadFile(
            f"{show(file, 120)} is {title}, not a LoRA", hint=f"sdcli inspect-unet {show(shlex.quote(path), 200)}"
        )
    return LoraFile(path=file, header=header, family=kind.family)


def known(family: str) -> Source:
    """A family that ships as a config, or the built-in model."""
    if family == "builtin":
        folder = data.builtin_model()
        if folder is None:
            raise ModelMissing("this build has no built-in model", hint="sdcli inspect-unet sd15")
        found = _folder(folder, "builtin", "known")
        return replace(found, family="builtin", title=guess.TITLES["builtin"], origin="shipped with sdcli")
    return Source(
        name=family,
        kind="known",
        family=family,
        title=guess.TITLES[family],
        origin=SHIPPED,
        config=data.component_config(family, "unet"),
        pixels_per_latent=1 if family == "unet2015" else 8,
    )


def _nowhere(name: str) -> ModelMissing:
    shown = show(name, 120)
    near = difflib.get_close_matches(name.casefold(), KNOWN, n=1, cutoff=0.6)
    hint = f"sdcli inspect-unet {near[0] if near else 'sd15'}"
    if os.sep in name or Path(name).suffix in (".safetensors", ".json"):
        return ModelMissing(f"there is no file {shown}", hint=hint)
    return ModelMissing(f'no model "{shown}": not {", ".join(KNOWN)}, no path, not in the Hub cache', hint=hint)


# the Hub cache


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and part[0] not in ".~" and part.isprintable() for part in parts)


def _hub(name: str) -> Source:
    """The commit that `main` pointed at, else the newest there is: a UNet alone has no model_index.json."""
    cache = hub_cache.folder(os.environ)
    main = hub_cache.snapshot(cache, name, None)
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    others = sorted(folder.iterdir(), key=lambda item: -item.stat().st_mtime) if folder.is_dir() else []
    for snapshot in [main.path, *others] if main else others:
        if (snapshot / "unet" / "config.json").exists() or (snapshot / "config.json").exists():
            found = _folder(snapshot, name, "hub")
            return replace(found, origin=f"{name} @{snapshot.name[:7]} in the Hub cache")
    family = REPOSITORIES.get(name)
    if family:
        return replace(known(family), name=name, origin="from the shipped config; not in the Hub cache")
    raise ModelMissing(
        f'"{show(name, 120)}" is not in the Hub cache, and inspect-unet downloads nothing',
        hint="sdcli inspect-unet sd15   (or the path of a .safetensors file)",
    )


# folders and config.json


def _folder(folder: Path, name: str, kind: str) -> Source:
    """A diffusers folder: the whole model, or its unet folder alone."""
    inside = folder / "unet" if (folder / "unet" / "config.json").exists() else folder
    if not (inside / "config.json").exists():
        raise ModelMissing(f"{show(folder)} has no unet/config.json and no config.json", hint="sdcli inspect-unet sd15")
    config = read_json(inside / "config.json")
    found = _of_config(config, name, kind, f"{show(name, 60)}/{inside.name}" if inside != folder else show(name, 60))
    found = replace(found, pixels_per_latent=_scale(folder, config))
    files, fault = _weights(inside)
    if not files:
        return replace(found, fault=fault)
    tensors: dict[str, Stored] = {}
    for file in files:
        try:
            header = headers.read_header(file)
        except SdcliError as error:
            fault = error
            continue
        tensors |= _stored(header, header.tensors)
    found = replace(found, fault=fault, origin=found.origin.removeprefix("from ") + ", only headers read")
    return _compared(found, tensors)


def _scale(folder: Path, config: Mapping[str, Any]) -> int:
    """Pixels per latent: from the VAE beside it, else 8 unless the UNet works on pixels."""
    beside = folder / "vae" / "config.json"
    if beside.exists():
        widths = read_json(beside).get("block_out_channels")
        if isinstance(widths, list) and 1 <= len(widths) <= 8:
            return 1 << (len(widths) - 1)
    pixels = config.get("in_channels") in (1, 3, 6) or config.get("_class_name") == "UNet2015"
    return 1 if pixels else 8


def _weights(folder: Path) -> tuple[list[Path], SdcliError | None]:
    """The weight files of a component folder: the plain variant where there is one, all of its shards."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return [], None
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            return [], BadFile(f"{show(index)} has no weight_map")
        names = sorted({name for name in table.values() if Path(name).name == name})
        present = [folder / name for name in names if (folder / name).exists()]
        lacking = [name for name in names if not (folder / name).exists()]
        fault = (
            ModelMissing(
                f"{len(lacking)} of {len(names)} weight files are missing", hint="get the model again, or another"
            )
            if lacking
            else None
        )
        return present, fault
    plain = [file for file in files if file.stem in ("diffusion_pytorch_model", "model")]
    return plain[:1] or files[:1], None


def _of_config(config: Mapping[str, Any], name: str, kind: str, where: str) -> Source:
    """A config becomes a source; an unknown architecture is named, with what its config says of itself."""
    named = str(config.get("_class_name") or "UNet2DConditionModel")
    if named not in CLASS_NAMES:
        raise BadFile(
            f"{where} is a {show(named, 60)}, not a UNet that sdcli knows ({_said(config)})",
            hint="sdcli inspect-unet sd15   (other torch modules: --module package.module:factory)",
        )
    shapes = guess.tensors_of(analyse(config, height=_smallest(config), width=_smallest(config)))
    family, channels = guess.known_family(shapes)
    exact = bool(family) and all(shapes.get(n) == s for n, s in guess.expected(family).items() if "conv_in" not in n)
    title = UNKNOWN
    if exact:
        title = guess.TITLES[family] + (f", {channels} input channels" if channels != 4 else "")
    return Source(
        name=name,
        kind=kind,
        family=family if exact else "",
        title=title,
        origin=f"from {where}",
        config=config,
        pixels_per_latent=8,
    )


def _smallest(config: Mapping[str, Any]) -> int:
    """A size in latents at which any structure of this config can be walked."""
    levels = config.get("block_out_channels")
    count = len(levels) if isinstance(levels, list) else 4
    return 572 if config.get("_class_name") == "UNet2015" else 1 << min(count, 16)


def _said(config: Mapping[str, Any]) -> str:
    told = [f"{key} {config[key]}" for key in ("num_layers", "num_attention_heads", "in_channels") if key in config]
    return show(", ".join(told), 120) or f"{len(config)} settings"


# single files


def _file(path: Path) -> Source | LoraFile:
    if path.suffix == ".json":
        config = read_json(path)
        found = _of_config(config, path.stem, "config", show(path.name, 60))
        return replace(found, pixels_per_latent=_scale(path.parent.parent, config))
    fault: SdcliError | None = None
    try:
        header = headers.read_header(path)
    except BadFile as error:
        readable = _readable(path)
        if readable is None:
            raise
        header, fault = readable, error
    kind = kinds.kind_of(header)
    if kind.kind == "lora":
        return LoraFile(path=path, header=header, family=kind.family)
    inside = _unet_tensors(header)
    if not inside:
        raise fault or _no_unet(path, header, kind)
    found = _of_tensors(path, header, inside, _config_beside(path, inside))
    beside = tuple(
        f"{_PARTS.get(name, name)} {part.parameters / 1e6:,.1f} M"
        for name, part in kind.parts.items()
        if name != "unet"
    )
    whole = header.size > sum(t.size for t in inside.values()) * 1.02 and bool(beside)
    return replace(found, kind="checkpoint" if whole else "unet-file", beside=beside, fault=fault or found.fault)


_PARTS = {"vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


def _no_unet(path: Path, header: Header, kind: kinds.Kind) -> BadFile:
    held = ", ".join(f"{name} {part.parameters:,} parameters, {part.dtype}" for name, part in kind.parts.items())
    if not held:
        names = ", ".join(show(name, 60) for name in list(header.tensors)[:3])
        held = f"{len(header.tensors)} tensors, {disk_text(header.size)}: {names} …"
    return BadFile(
        f"{show(path)} is {kinds.TITLES.get(kind.kind, kind.kind)}; there is no UNet in it ({held})",
        hint="sdcli inspect-unet sd15",
    )


def _readable(path: Path) -> Header | None:
    """The header of a damaged file, as far as it can be understood: names and shapes, nothing checked."""
    try:
        with reading.opened(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(headers.LARGEST_HEADER, size - 8):
                return None
            table = reading.parse_object(file.read(length))
    except (OSError, reading.NotJson):
        return None
    tensors = {}
    for name, entry in table.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and all(isinstance(n, int) and 0 <= n < 2**40 for n in shape) and name.isprintable():
            tensors[name] = Tensor(str(entry.get("dtype")), tuple(shape), *_offsets(entry.get("data_offsets")))
    return Header(path=path, size=size, data_start=8 + length, tensors=tensors, metadata={}) if tensors else None


def _offsets(given: Any) -> tuple[int, int]:
    """Where a tensor should lie; nowhere, if that cannot be."""
    if isinstance(given, list) and len(given) == 2 and all(isinstance(n, int) and 0 <= n < 2**48 for n in given):
        return (given[0], given[1]) if given[0] <= given[1] else (0, 0)
    return 0, 0


def _unet_tensors(header: Header) -> dict[str, Tensor]:
    """The UNet's tensors without their prefix, as the file names them."""
    for prefix in (kinds.UNET, "unet.", "diffusion_model."):
        inside = {name[len(prefix) :]: t for name, t in header.tensors.items() if name.startswith(prefix)}
        if "input_blocks.0.0.weight" in inside or "conv_in.weight" in inside or len(inside) > 100:
            return inside
    names = header.tensors
    if keys.is_original(names) or any(name.startswith(("down_blocks.", "up_blocks.")) for name in names):
        return dict(names)
    return {}


def _config_beside(path: Path, inside: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The config.json in the same folder, when it is that of a UNet in diffusers' names."""
    beside = path.parent / "config.json"
    if keys.is_original(inside) or not beside.exists():
        return None
    try:
        config = read_json(beside)
    except SdcliError:
        return None
    return config if config.get("_class_name") == "UNet2DConditionModel" else None


def _of_tensors(
    path: Path, header: Header, inside: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Source:
    """Structure from shapes: the known family most of them fit, else read back from the tensors themselves."""
    tensors = _stored(header, inside)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    family, channels = guess.known_family(shapes)
    name, where = path.stem, show(path.name, 60)
    if config is not None:
        found = _of_config(config, name, "unet-file", where)
        found = replace(
            found, origin=f"{where}, only its header read", pixels_per_latent=_scale(path.parent.parent, config)
        )
        return _compared(found, tensors)
    if family:
        config = {**data.component_config(family, "unet"), "in_channels": channels}
        title = guess.TITLES[family] + (f", {channels} input channels" if channels != 4 else "")
    else:
        config, title = guess.config_of(shapes), UNKNOWN
    found = Source(
        name=name,
        kind="unet-file",
        family=family,
        title=title,
        origin=f"{where}, only its header read",
        config=config,
        pixels_per_latent=1 if config["in_channels"] in (1, 3, 6) else 8,
    )
    return _compared(found, tensors)


def _stored(header: Header, inside: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Tensors under their diffusers names, with the places of their bytes."""
    found: dict[str, Stored] = {}
    for name, origin in keys.rename("unet", inside).items():
        tensor = inside[origin.name]
        found[name] = Stored(
            name=name,
            shape=tensor.shape,
            dtype=NAMES.get(tensor.dtype, tensor.dtype.lower()),
            file=str(header.path),
            start=header.data_start + tensor.begin,
            end=header.data_start + tensor.end,
            original=origin.name,
            stored=tensor.dtype,
        )
    return found


def _compared(source: Source, tensors: Mapping[str, Stored]) -> Source:
    """The source with its file held against its structure."""
    side = _smallest(source.config)
    wanted = guess.tensors_of(analyse(source.config, height=side, width=side))
    missing = tuple(name for name in wanted if name not in tensors)
    mismatched = tuple(
        Mismatch(name=name, shape=tensors[name].shape, expected=shape)
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    )
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + _elements(tensor.shape)
    fault = source.fault
    if fault is None and (missing or mismatched):
        fault = _incomplete(source, missing, mismatched)
    return replace(
        source,
        tensors=tensors,
        stored_bytes=sum(tensor.end - tensor.start for tensor in tensors.values()),
        stored_dtypes=dtypes,
        missing=missing,
        unexpected=tuple(sorted(set(tensors) - set(wanted))),
        mismatched=mismatched,
        fault=fault,
    )


def _elements(shape: Iterable[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _incomplete(source: Source, missing: tuple[str, ...], mismatched: tuple[Mismatch, ...]) -> BadFile:
    said = []
    if missing:
        said.append(f"{len(missing)} tensor{'s' * (len(missing) > 1)} missing ({show(missing[0], 90)} …)")
    if mismatched:
        one = mismatched[0]
        shapes = f"{list(one.shape)}, expected {list(one.expected)}"
        said.append(f"{len(mismatched)} of another shape ({show(one.name, 90)} is {shapes} …)")
    return BadFile(
        f"{show(source.name, 60)}: {'; '.join(said)}", hint="get the file again, or another", missing=list(missing[:50])
    )
