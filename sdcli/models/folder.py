"""A diffusers folder: model_index.json, a config and weights per component. JSON and headers are all that is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.errors import BadFile, ModelMissing, Unsafe
from sdcli.models.families import families, find
from sdcli.models.headers import NAMES, read_header
from sdcli.models.kinds import TITLES, kind_of_config
from sdcli.models.model import Component, Model
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.terminal import show

LARGEST_JSON = 8 << 20
# Keys through which a config has been able to make a library fetch or run code.
DANGEROUS = ("auto_map", "trust_remote_code", "custom_pipeline", "_attn_implementation")
CLASSES: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
# Never loaded, and so of no concern, whatever they are.
_IGNORED = ("safety_checker", "feature_extractor", "image_encoder", "scheduler")
_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def read(
    path: Path, *, family: str | None = None, name: str | None = None, source: str = "folder",
    repository: str | None = None, revision: str | None = None, licence: str | None = None,
) -> Model:  # fmt: skip
    """The model in a folder; `family` is given for the built-in one, whose classes are Stable Diffusion's."""
    index = _index(path)
    kind = family or _family(index, path)
    components = {part: _component(path, part, index) for part in find(kind).components}
    _, named = kind_of_config(components["unet"].config)
    if family is None and named not in (kind, "unknown"):  # a model of unusual width is what its index says
        raise BadFile(
            f"{show(path)} is {TITLES.get(named, named)}, which sdcli does not draw with yet",
            hint='sdcli generate "a cat" -m sd15',
        )
    scheduler = read_json(path / "scheduler" / "scheduler_config.json", required=False)
    return Model(
        name=name or path.name, kind=kind, family=kind, source="builtin" if family == "builtin" else source,
        revision=revision, prediction=_prediction(scheduler), zero_snr=bool(scheduler.get("rescale_betas_zero_snr")),
        disk_bytes=sum(component.stored_bytes for component in components.values()), components=components,
        path=str(path), repository=repository, licence=licence, scheduler=scheduler or shipped_scheduler(kind),
        defaults=_defaults(index),
    )  # fmt: skip


def shipped_scheduler(family: str) -> Mapping[str, Any]:
    return data.component_config(family, "scheduler")


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object of limited size without keys that could make a library run code."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise BadFile(f"{show(path)} is larger than 8 MiB", hint="get the model again")
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise ModelMissing(f"{show(path)} is missing", hint="get the model again, or another") from None
    except OSError as error:
        raise BadFile(f"{show(path)} cannot be read: {show(error.strerror or error)}", hint="sdcli doctor") from None
    except (ValueError, RecursionError):
        raise BadFile(f"{show(path)} is damaged: not JSON", hint="get the model again, or another") from None
    if not isinstance(held, dict):
        raise BadFile(f"{show(path)} is damaged: not a JSON object", hint="get the model again, or another")
    for key in held:
        if key.startswith(DANGEROUS):
            raise Unsafe(
                f'{show(path)} has the key "{show(key, 60)}", which can make code run; refused',
                hint='sdcli generate "a cat" -m sd15',
            )
    return held


def _index(path: Path) -> dict[str, Any]:
    if (path / "model_index.json").is_file():
        return read_json(path / "model_index.json")
    try:
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix == ".safetensors")
    except OSError as error:
        raise BadFile(f"{show(path)} cannot be read: {show(error.strerror or error)}", hint="sdcli doctor") from None
    if files:
        raise ModelMissing(
            f"{show(path)} has no model_index.json; it holds {len(files)} single model file{'s'[: len(files) > 1]}",
            hint=f'sdcli generate "a cat" -m {show(path / files[0], 200)}',
        )
    raise ModelMissing(f"{show(path)} is no model: there is no model_index.json in it", hint="sdcli doctor")


def _family(index: Mapping[str, Any], path: Path) -> str:
    pipeline = index.get("_class_name")
    for family in families().values():
        if family.pipeline == pipeline and family.name != "builtin":
            _check_classes(index, path)
            return family.name
    raise BadFile(
        f"{show(path)} is for {show(pipeline, 60)}, which sdcli does not draw with; it draws with SD1.5 and SDXL",
        hint='sdcli generate "a cat" -m sd15',
    )


def _check_classes(index: Mapping[str, Any], path: Path) -> None:
    """Every component a class sdcli makes itself: a model names no code."""
    for name, value in index.items():
        if not isinstance(value, list) or name in _IGNORED:
            continue
        library, cls = (*value, None, None)[:2]
        if library is None and cls is None:
            continue
        if library not in _LIBRARIES or cls not in CLASSES.get(name, ()):
            raise Unsafe(
                f"{show(path)} wants {show(name, 40)} to be {show(library, 60)}.{show(cls, 60)}; refused",
                hint='sdcli generate "a cat" -m sd15',
            )


def _component(path: Path, part: str, index: Mapping[str, Any]) -> Component:
    folder = path / part
    config = read_json(folder / "config.json")
    headers = [read_header(file) for file in _weights(folder, _STEMS.get(part, "model"))]
    tensors = [tensor for header in headers for tensor in header.tensors.values()]
    dtypes = {tensor.dtype for tensor in tensors if tensor.dtype in NAMES}
    return Component(
        parameters=sum(t.parameters for t in tensors if t.dtype in NAMES),
        stored_bytes=sum(t.size for t in tensors),
        stored_dtype=NAMES[dtypes.pop()] if len(dtypes) == 1 else "mixed",
        config=config,
        files=tuple(str(header.path) for header in headers),
    )


def _weights(folder: Path, stem: str) -> list[Path]:
    """The component's files: fp16 where there are several variants (half to read), whole or in shards."""
    for variant in (".fp16", ""):
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return [whole]
        table = next((p for p in _shard_tables(folder, stem, variant) if p.is_file()), None)
        if table is not None:
            return _shards(table)
    pickles = [p.name for p in folder.glob("*") if p.suffix in PICKLE_SUFFIXES] if folder.is_dir() else []
    if pickles:
        raise Unsafe(
            f"{show(folder)} has only pickles ({show(pickles[0], 80)}); loading one could run code, so sdcli does not",
            hint="get the model with .safetensors files",
        )
    raise ModelMissing(f"{show(folder / stem)}.safetensors is missing", hint="get the model again, or another")


def _shard_tables(folder: Path, stem: str, variant: str) -> tuple[Path, ...]:
    return (folder / f"{stem}.safetensors.index{variant}.json", folder / f"{stem}{variant}.safetensors.index.json")


def _shards(table: Path) -> list[Path]:
    placed = read_json(table).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise BadFile(f"{show(table)} is damaged: no weight_map", hint="get the model again, or another")
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        if not re.fullmatch(r"[\w.\-]{1,200}\.safetensors", name, re.ASCII):
            raise Unsafe(f"{show(table)} names {show(name, 80)}, outside its own folder; refused", hint="sdcli doctor")
        if not (table.parent / name).is_file():
            raise ModelMissing(f"{show(table.parent / name)} is missing", hint="get the model again, or another")
    return [table.parent / name for name in names]


def _prediction(scheduler: Mapping[str, Any]) -> str:
    return "v_prediction" if scheduler.get("prediction_type") == "v_prediction" else "epsilon"


def _defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's own index asks for, under `sdcli`: only plain settings of the right type."""
    asked = index.get("sdcli")
    types: dict[str, tuple[type, ...]] = {
        "width": (int,), "height": (int,), "steps": (int,), "guidance": (int, float), "sampler": (str,)
    }  # fmt: skip
    if not isinstance(asked, dict):
        return {}
    return {name: asked[name] for name, cls in types.items() if isinstance(asked.get(name), cls)}
