"""Find a UNet by name: a known family, a cached Hub id, a folder, a checkpoint, a bare UNet or a config.json.

Of weights, only the header is read. Other parts of the file, missing tensors and wrong shapes are named.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli import data, reading
from sdcli.errors import BadFile, ModelMissing, SdcliError
from sdcli.inspect import guess
from sdcli.inspect.facts import Mismatch, Source, Stored
from sdcli.models import headers, hub_cache, hub_name, keys, kinds, resolve
from sdcli.models.checkpoint import PARTS
from sdcli.models.expected import tensors_of
from sdcli.models.folder import read_json
from sdcli.models.headers import NAMES, Header, Tensor
from sdcli.models.unet import CLASS_NAMES, analyse
from sdcli.near import nearest
from sdcli.terminal import counted, disk_text, quoted, show

KNOWN = ("sd15", "sdxl", "sd2", "refiner", "unet2015", "builtin")
# In addition to those that sdcli can draw with.
REPOSITORIES = {
    "stabilityai/stable-diffusion-xl-refiner-1.0": "refiner",
    "stabilityai/stable-diffusion-2-1": "sd2",
}
SHIPPED = "from the shipped config, nothing downloaded"


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA, named where a model was expected."""

    path: Path
    header: Header
    family: str


def find(model: str) -> Source | LoraFile:
    """What `model` names; ModelMissing if it does not exist, BadFile if it cannot be used."""
    name = model.strip()
    family = "sd2" if name.casefold() == "sd21" else name.casefold()  # 2.0 and 2.1 have the same UNet
    if family in KNOWN:
        return of_family(family)
    path = resolve.existing(name)
    if path is not None:
        return _folder(path, path.name or str(path), "folder") if path.is_dir() else _file(path)
    if hub_name.is_repository(name.partition("@")[0]):
        return _hub(name)
    raise _not_found(name)


def find_lora(path: str) -> LoraFile:
    """The LoRA in a file; BadFile says what the file is if it is not one."""
    file = Path(os.path.expanduser(path))
    header = headers.read_header(file)
    kind = kinds.kind_of(header)
    if kind.kind != "lora":
        title = kinds.TITLES.get(kind.kind, kind.kind)
        raise BadFile(f"{show(file, 120)} is {title}, not a LoRA", hint=f"sdcli inspect-unet {show(quoted(path), 200)}")
    return LoraFile(path=file, header=header, family=kind.family)


def of_family(family: str) -> Source:
    """A family whose config is shipped, or the built-in model."""
    if family == "builtin":
        folder = data.builtin_model()
        if folder is None:
            raise ModelMissing("this build has no built-in model", hint="sdcli inspect-unet sd15")
        source = _folder(folder, "builtin", "known")
        return replace(source, family="builtin", title=guess.title("builtin"), origin="shipped with sdcli")
    return Source(
        name=family,
        kind="known",
        family=family,
        title=guess.title(family),
        origin=SHIPPED,
        config=data.component_config(family, "unet"),
        pixels_per_latent=1 if family == "unet2015" else 8,
    )


def _not_found(name: str) -> ModelMissing:
    shown = show(name, 120)
    near = nearest(name, KNOWN, 1, alike=0.6)
    hint = f"sdcli inspect-unet {near[0] if near else 'sd15'}"
    if os.sep in name or Path(name).suffix in (".safetensors", ".json"):
        return ModelMissing(f"file not found: {shown}", hint=hint)
    return ModelMissing(
        f'no model "{shown}": not one of {", ".join(KNOWN)}, not a path, not in the Hub cache', hint=hint
    )


# the Hub cache


def _hub(name: str) -> Source:
    """The commit that `main` pointed at, else the newest cached one: a UNet alone has no model_index.json."""
    cache = hub_cache.folder(os.environ)
    main = hub_cache.snapshot(cache, name, None)
    folder = hub_cache.repository_folder(cache, name) / "snapshots"
    others = sorted(folder.iterdir(), key=lambda item: -item.stat().st_mtime) if folder.is_dir() else []
    for snapshot in [main.path, *others] if main else others:
        if _unet_in(snapshot) is not None:
            source = _folder(snapshot, name, "hub")
            return replace(source, origin=f"{name} @{snapshot.name[:7]} in the Hub cache")
    shipped = resolve.known_as(name)
    family = shipped.alias if shipped else REPOSITORIES.get(name)
    if family:
        return replace(of_family(family), name=name, origin="from the shipped config; not in the Hub cache")
    raise ModelMissing(
        f'"{show(name, 120)}" is not in the Hub cache, and inspect-unet downloads nothing',
        hint="sdcli inspect-unet sd15   (or the path of a .safetensors file)",
    )


# folders and config.json


def _unet_in(folder: Path) -> Path | None:
    """The folder with the UNet: the unet folder of a whole model, or this folder itself."""
    return next((inside for inside in (folder / "unet", folder) if (inside / "config.json").exists()), None)


def _folder(folder: Path, name: str, kind: str) -> Source:
    inside = _unet_in(folder)
    if inside is None:
        raise ModelMissing(f"{show(folder)} has no unet/config.json and no config.json", hint="sdcli inspect-unet sd15")
    config = read_json(inside / "config.json")
    where = f"{show(name, 60)}/{inside.name}" if inside != folder else show(name, 60)
    source = _of_config(config, name, kind, where, vae=folder / "vae")
    files, fault = _weights(inside)
    if not files:
        return replace(source, fault=fault)
    tensors: dict[str, Stored] = {}
    for file in files:
        try:
            header = headers.read_header(file)
        except SdcliError as error:
            fault = error
            continue
        tensors |= _stored(header)
    return _compared(replace(source, fault=fault, origin=f"{where}, only headers read"), tensors)


def _pixels_per_latent(config: Mapping[str, Any], vae: Path | None = None) -> int:
    """From the VAE beside it, else 8 unless the UNet works on pixels."""
    if vae is not None and (vae / "config.json").exists():
        widths = read_json(vae / "config.json").get("block_out_channels")
        if isinstance(widths, list) and 1 <= len(widths) <= 8:
            return 1 << (len(widths) - 1)
    return 1 if config.get("in_channels") in (1, 3, 6) or config.get("_class_name") == "UNet2015" else 8


def _weights(folder: Path) -> tuple[list[Path], SdcliError | None]:
    """The weight files of a component folder: the plain variant where there is one, all of its shards."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return [], None
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            return [], BadFile(f"{show(index)} has no weight_map")
        shards = [folder / name for name in sorted(set(table.values())) if Path(name).name == name]
        present = [shard for shard in shards if shard.exists()]
        lacking = f"{len(shards) - len(present)} of {len(shards)} weight files are missing"
        whole = len(present) == len(shards)
        return present, None if whole else ModelMissing(lacking, hint="download the model again, or use another")
    plain = [file for file in files if file.stem in ("diffusion_pytorch_model", "model")]
    return plain[:1] or files[:1], None


def _of_config(config: Mapping[str, Any], name: str, kind: str, where: str, vae: Path) -> Source:
    """A config becomes a source; an unknown architecture is named, with what its config says about it."""
    class_name = str(config.get("_class_name") or "UNet2DConditionModel")
    if class_name not in CLASS_NAMES:
        raise BadFile(
            f"{where} is a {show(class_name, 60)}, not a UNet that sdcli supports ({_settings(config)})",
            hint="sdcli inspect-unet sd15   (other torch modules: --module package.module:factory)",
        )
    shapes = _described(config)
    family, channels = guess.known_family(shapes)
    if any(shapes.get(n) != s for n, s in guess.expected(family).items() if "conv_in" not in n):
        family = ""
    return Source(
        name=name,
        kind=kind,
        family=family,
        title=guess.title(family, channels),
        origin=f"from {where}",
        config=config,
        pixels_per_latent=_pixels_per_latent(config, vae),
    )


def _described(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    side = _smallest(config)
    return tensors_of(analyse(config, height=side, width=side).leaves)


def _smallest(config: Mapping[str, Any]) -> int:
    """A size in latents at which any structure of this config can be walked."""
    levels = config.get("block_out_channels")
    count = len(levels) if isinstance(levels, list) else 4
    return 572 if config.get("_class_name") == "UNet2015" else 1 << min(count, 16)


def _settings(config: Mapping[str, Any]) -> str:
    settings = [f"{key} {config[key]}" for key in ("num_layers", "num_attention_heads", "in_channels") if key in config]
    return show(", ".join(settings), 120) or f"{len(config)} settings"


# single files


def _file(path: Path) -> Source | LoraFile:
    if path.suffix == ".json":
        return _of_config(read_json(path), path.stem, "config", show(path.name, 60), vae=path.parent.parent / "vae")
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
    tensors = _unet_tensors(header)
    if not tensors:
        raise fault or _no_unet(path, header, kind)
    source = _of_tensors(path, tensors, _config_beside(path, header))
    beside = tuple(
        f"{PARTS.get(name, name)} {part.parameters / 1e6:,.1f} M" for name, part in kind.parts.items() if name != "unet"
    )
    whole = header.size > (source.stored_bytes or 0) * 1.02 and bool(beside)
    return replace(source, kind="checkpoint" if whole else "unet-file", beside=beside, fault=fault or source.fault)


def _no_unet(path: Path, header: Header, kind: kinds.Kind) -> BadFile:
    contents = ", ".join(f"{name} {part.parameters:,} parameters, {part.dtype}" for name, part in kind.parts.items())
    if not contents:
        names = ", ".join(show(name, 60) for name in list(header.tensors)[:3])
        contents = f"{len(header.tensors)} tensors, {disk_text(header.size)}: {names} …"
    return BadFile(
        f"{show(path)} is {kinds.TITLES.get(kind.kind, kind.kind)}; it has no UNet ({contents})",
        hint="sdcli inspect-unet sd15",
    )


def _readable(path: Path) -> Header | None:
    """The header of a damaged file, as far as it can be read: names and shapes, unchecked."""
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


def _offsets(offsets: Any) -> tuple[int, int]:
    """Where a tensor should be; (0, 0) if the offsets are invalid."""
    if isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(n, int) and 0 <= n < 2**48 for n in offsets):
        return (offsets[0], offsets[1]) if offsets[0] <= offsets[1] else (0, 0)
    return 0, 0


def _unet_tensors(header: Header) -> dict[str, Stored]:
    """The UNet's tensors; none if the file has no blocks of one."""
    tensors = _stored(header)
    blocks = any(name.startswith(("conv_in.", "down_blocks.", "up_blocks.")) for name in tensors)
    return tensors if blocks else {}


def _config_beside(path: Path, header: Header) -> dict[str, Any] | None:
    """The config.json in the same folder, if it is a UNet's in diffusers' names."""
    file = path.parent / "config.json"
    if any("input_blocks." in name for name in header.tensors) or not file.exists():
        return None
    try:
        config = read_json(file)
    except SdcliError:
        return None
    return config if config.get("_class_name") == "UNet2DConditionModel" else None


def _of_tensors(path: Path, tensors: Mapping[str, Stored], config: Mapping[str, Any] | None) -> Source:
    """Structure from the config beside the file; without one from shapes: the known family that most of them fit,
    else derived from the tensors themselves."""
    where = show(path.name, 60)
    if config is not None:
        source = _of_config(config, path.stem, "unet-file", where, vae=path.parent.parent / "vae")
        return _compared(replace(source, origin=f"{where}, only its header read"), tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    family, channels = guess.known_family(shapes)
    config = {**data.component_config(family, "unet"), "in_channels": channels} if family else guess.config_of(shapes)
    source = Source(
        name=path.stem,
        kind="unet-file",
        family=family,
        title=guess.title(family, channels),
        origin=f"{where}, only its header read",
        config=config,
        pixels_per_latent=_pixels_per_latent(config),
    )
    return _compared(source, tensors)


def _stored(header: Header) -> dict[str, Stored]:
    """A UNet's tensors under their diffusers names, with the offsets of their bytes."""
    tensors: dict[str, Stored] = {}
    for name, origin in keys.rename("unet", header.tensors).items():
        tensor = header.tensors[origin.name]
        tensors[name] = Stored(
            name=name,
            shape=tensor.shape,
            dtype=NAMES.get(tensor.dtype, tensor.dtype.lower()),
            file=str(header.path),
            start=header.data_start + tensor.begin,
            end=header.data_start + tensor.end,
            stored=tensor.dtype,
        )
    return tensors


def _compared(source: Source, tensors: Mapping[str, Stored]) -> Source:
    """The source, with its file compared to its structure."""
    expected = _described(source.config)
    missing = tuple(name for name in expected if name not in tensors)
    mismatched = tuple(
        Mismatch(name=name, shape=tensors[name].shape, expected=shape)
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    )
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    fault = source.fault
    if fault is None and (missing or mismatched):
        fault = _incomplete(source, missing, mismatched)
    return replace(
        source,
        tensors=tensors,
        stored_bytes=sum(tensor.end - tensor.start for tensor in tensors.values()),
        stored_dtypes=dtypes,
        missing=missing,
        unexpected=tuple(sorted(set(tensors) - set(expected))),
        mismatched=mismatched,
        fault=fault,
    )


def _incomplete(source: Source, missing: tuple[str, ...], mismatched: tuple[Mismatch, ...]) -> BadFile:
    problems = []
    if missing:
        problems.append(f"{counted(len(missing), 'tensor')} missing ({show(missing[0], 90)} …)")
    if mismatched:
        one = mismatched[0]
        shapes = f"{list(one.shape)}, expected {list(one.expected)}"
        problems.append(f"{len(mismatched)} with the wrong shape ({show(one.name, 90)} is {shapes} …)")
    return BadFile(
        f"{show(source.name, 60)}: {'; '.join(problems)}",
        missing=list(missing[:50]),
    )
