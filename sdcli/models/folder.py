"""A diffusers folder: model_index.json, a config and weights per component. Only JSON and headers are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdcli import data, reading
from sdcli.errors import BadFile, ModelMissing, Unsafe, Usage
from sdcli.models import configs, edm, shipped, vae
from sdcli.models.families import families, find, of_unet
from sdcli.models.headers import read_header
from sdcli.models.kinds import EDM, TITLES, TRAINED_TO, channels_of, kind_of_config, part_of
from sdcli.models.model import ENCODERS, Component, Model, net_kind
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.terminal import show, size_text

LARGEST_JSON = 8 << 20
# Keys with which a config can make a library download or run code.
DANGEROUS = ("auto_map", "trust_remote_code", "custom_pipeline", "_attn_implementation")
# transformers itself wrote this one for a while; a boolean cannot name code.
_HARMLESS = "_attn_implementation_autoset"
CLASSES: dict[str, tuple[str, ...]] = {  # a config that names another is refused
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "controlnet": ("ControlNetModel",),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "ip_adapter": ("IPAdapter",),  # sdcli's own
    "controlnet_union": ("ControlNetUnionModel",),
    "t2i_adapter": ("T2IAdapter",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
# diffusers classes that real models name, but that sdcli does not support.
_KNOWN_UNUSED = (
    "AutoencoderTiny",
    "AsymmetricAutoencoderKL",
    "ConsistencyDecoderVAE",
    "UNet2DModel",
    "FlaxCLIPTextModel",
)
# Never loaded, so any class of those libraries is allowed. Of the scheduler only numbers are read.
_NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder", "scheduler")
VARIANTS = (".fp16", "", ".bf16", ".fp32")  # the order in which a folder's weights are looked for
_PREDICTIONS = ("epsilon", "v_prediction")
_AGAIN = "download the model again, or use another"
_ANOTHER = "-m sd15"


class OnlyPickles(Unsafe):
    """The weights exist, but only as pickles."""


def read(
    path: Path, *, family: str | None = None, name: str | None = None, source: str = "folder",
    repository: str | None = None, revision: str | None = None, licence: str | None = None, whole: bool = True,
) -> Model:  # fmt: skip
    """The model in a folder; `family` is set for the built-in one, which names Stable Diffusion's classes.

    With `whole` false it may lack tensors, for inspection."""
    index = _index(path)
    kind = family or family_of(path)
    _check_classes(index, path)
    described = {part: read_json(path / part / "config.json") for part in find(kind).components}
    _check_unet(described["unet"], described["vae"], kind if family is None else "", path)
    for part, config in described.items():
        configs.check(part, config, path / part / "config.json")
    components = {part: component_at(path / part, part, config, whole) for part, config in described.items()}
    scheduler = _scheduler(path / "scheduler" / "scheduler_config.json")
    own_noise = _own_noise(scheduler, kind, described["unet"], path)
    return Model(
        name=name or family or path.name, kind=EDM if own_noise else _kind(kind, described["unet"]), family=kind,
        source="builtin" if family == "builtin" else source,
        revision=revision, prediction=_prediction(scheduler, path),
        zero_snr=scheduler.get("rescale_betas_zero_snr") is True,
        empty_is_zeros=_truth(index.get("force_zeros_for_empty_prompt"), find(kind).empty_is_zeros),
        disk_bytes=sum(component.stored_bytes for component in components.values()), components=components,
        path=str(path), vocabulary=_vocabulary(components, path), repository=repository, licence=licence,
        scheduler=scheduler or shipped_scheduler(kind),
        defaults={**_native(components, find(kind).native), **(edm.DEFAULTS if own_noise else {}), **_defaults(index)},
        preview=_preview(index, components),
    )  # fmt: skip


def _kind(family: str, unet: Mapping[str, Any]) -> str:
    if not find(family).repainting:  # the built-in model's latents have eight channels
        return family
    variant = next((name for name in TRAINED_TO if unet.get("in_channels") == channels_of(family + name)), "")
    return family + variant


def shipped_scheduler(family: str) -> Mapping[str, Any]:
    return data.component_config(family, "scheduler")


# --- JSON


def read_json(path: Path, *, required: bool = True, infinite: bool = False) -> dict[str, Any]:
    """A JSON object of limited size without keys that could make a library run code."""
    try:
        content = reading.parse_object(reading.whole(path, LARGEST_JSON), infinite=infinite)
    except FileNotFoundError:
        if not required:
            return {}
        raise ModelMissing(f"{show(path)} is missing", hint=_AGAIN) from None
    except OSError as error:
        raise reading.cannot_read(path, error) from None
    except reading.NotJson as error:
        raise BadFile(f"{show(path)} is damaged: it {error}", hint=_AGAIN) from None
    for key, value in _keys(content):
        if key.startswith(DANGEROUS) and not (key == _HARMLESS and isinstance(value, bool)):
            raise Unsafe(
                f'{show(path)} has the key "{show(key, 60)}", which can make a library run code; refused', hint=_ANOTHER
            )
    return content


def _keys(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key at every depth, without recursion: the file controls the depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


# --- model_index.json


def _index(path: Path) -> dict[str, Any]:
    if (path / "model_index.json").exists():  # if it is no file, that is what is wrong
        return read_json(path / "model_index.json")
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise reading.cannot_read(path, error) from None
    files = [name for name in names if name.endswith(".safetensors")]
    if "config.json" in names:
        cls = read_json(path / "config.json").get("_class_name", "model")
        raise ModelMissing(
            f"{show(path)} is one part of a model ({show(cls, 60)}): it has no model_index.json", hint=_ANOTHER
        )
    if files:
        listed = ", ".join(show(name, 60) for name in files[:3]) + (" …" if len(files) > 3 else "")
        raise ModelMissing(
            f"{show(path)} has no model_index.json; it contains {listed}",
            hint=f'-m "{show(path / files[0], 300)}"',
        )
    raise ModelMissing(f"{show(path)} is not a model: it has no model_index.json", hint=_ANOTHER)


def family_of(path: Path) -> str:
    """The family of the model in a folder, by its UNet's config: several share a pipeline's class."""
    index = _index(path)
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list):  # names Python code in the folder itself
        raise Unsafe(f"{show(path)} wants to run its own {show(pipeline, 60)}; refused", hint=_ANOTHER)
    known = [name for family in families().values() for name in (family.pipeline, family.repainting, family.editing)]
    if not pipeline or pipeline not in known:
        titles = " and ".join(family.title for family in families().values() if family.text_width)
        raise BadFile(
            f"{show(path)} is for {show(pipeline, 60)}, which sdcli cannot draw with; it supports {titles}",
            hint=_ANOTHER,
        )
    unet = read_json(path / "unet" / "config.json")
    family = of_unet(unet)
    if family is None or unet.get("encoder_hid_dim") is not None:
        raise BadFile(f"{show(path)} has a UNet that sdcli cannot draw with", hint=_ANOTHER)
    return family.name


def _check_classes(index: Mapping[str, Any], path: Path) -> None:
    """Every component must name a class that sdcli creates itself: a model cannot name code to run."""
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None]:
            continue
        demand = f"{show(path)} wants {show(name, 40)} to be {'.'.join(show(word, 60) for word in value[:2])}"
        if len(value) == 2 and value[1] in _KNOWN_UNUSED:
            raise BadFile(f"{demand}, which sdcli does not support", hint=_ANOTHER)
        loaded = name not in _NOT_LOADED
        if len(value) != 2 or value[0] not in _LIBRARIES or (loaded and value[1] not in CLASSES.get(name, ())):
            raise Unsafe(f"{demand}; refused", hint=_ANOTHER)


def _check_unet(unet: Mapping[str, Any], decoder: Mapping[str, Any], family: str, path: Path) -> None:
    """A UNet of unusual width is taken for what the index says; one of another known family is not."""
    _, named = kind_of_config(unet)
    if family and named not in (family, *[family + variant for variant in TRAINED_TO], "unknown"):
        raise BadFile(f"{show(path)} is {TITLES.get(named, named)}, which sdcli cannot draw with yet", hint=_ANOTHER)
    takes, gives = unet.get("in_channels", 4), decoder.get("latent_channels", 4)
    # beside its latents, a UNet that repaints sees a mask and the latents of what is around it, one that edits those of
    # the image
    if takes != gives and not (isinstance(gives, int) and takes in (2 * gives, 2 * gives + 1)):
        raise BadFile(
            f"{show(path)}: its UNet takes {show(takes, 20)} channels, its VAE gives {show(gives, 20)}: "
            "not a text-to-image model",
            hint=_ANOTHER,
        )


# --- components


class Incomplete(BadFile):
    """Fewer parameters than the config describes. `details` has the model's folder."""


def component_at(folder: Path, part: str, config: Mapping[str, Any], whole: bool = True) -> Component:
    if config.get("quantization_config") is not None:
        raise BadFile(f"{show(folder)} is quantized, which sdcli does not support", hint=_ANOTHER)
    headers = [read_header(file) for file in _weights(folder, stem_of(part))]
    stored = part_of(item for header in headers for item in header.tensors.items())
    described = describes(part, config, folder)
    if stored is None or (whole and stored.parameters < described):
        raise Incomplete(
            f"{show(folder)} has {stored.parameters if stored else 0:,} parameters, its config.json describes "
            f"{described:,}: not the same model",
            hint=_AGAIN, folder=str(folder.parent),
        )  # fmt: skip
    return Component(
        parameters=stored.parameters, stored_bytes=stored.bytes, stored_dtype=stored.dtype, config=config,
        files=tuple(str(header.path) for header in headers),
    )  # fmt: skip


def describes(part: str, config: Mapping[str, Any], folder: Path) -> int:
    """The parameters of a component by its config, which may be one that cannot be."""
    try:
        return shipped.parameters_of(part, config)
    except (BadFile, Usage) as error:
        message = error.message.removeprefix("config: ")
        raise BadFile(f"{show(folder / 'config.json')}: {message}", hint=_ANOTHER) from None


def _weights(folder: Path, stem: str) -> list[Path]:
    """The component's files: fp16 where there are several variants (half as much to read), whole or in shards."""
    for variant in VARIANTS:
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.exists():  # what is there but no file is refused when it is read
            return [whole]
        table = next((folder / name for name in shard_tables(stem, variant) if (folder / name).exists()), None)
        if table is not None:
            return _shards(table)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLE_SUFFIXES) if folder.is_dir() else []
    if pickles:
        raise OnlyPickles(
            f"{show(folder)} has only pickles ({show(pickles[0], 80)}); loading one can run code; refused",
            hint="get the model with .safetensors files",
        )
    raise ModelMissing(f"{show(folder / stem)}.safetensors is missing", hint=_AGAIN)


def stem_of(part: str) -> str:
    """What a component's files are called: diffusers' own parts one way, those of transformers another."""
    return "diffusion_pytorch_model" if part in ("unet", "vae") or net_kind(part) is not None else "model"


def shard_tables(stem: str, variant: str) -> tuple[str, str]:
    """Both word orders are in use."""
    return (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json")


def _shards(table: Path) -> list[Path]:
    weight_map = read_json(table).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFile(f"{show(table)} is damaged: no weight_map", hint=_AGAIN)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not re.fullmatch(r"[\w.\-]{1,200}\.safetensors", name, re.ASCII):
            raise Unsafe(f"{show(table)} names {show(name, 80)}, which is not a file beside it; refused", hint=_ANOTHER)
        if not (table.parent / name).exists():
            raise ModelMissing(f"{show(table.parent / name)} is missing", hint=_AGAIN)
    return [table.parent / name for name in names]


# --- settings in the model's own files


def _truth(value: Any, default: bool) -> bool:
    return value if isinstance(value, bool) else default


def _scheduler(file: Path) -> dict[str, Any]:
    """Its numbers; diffusers itself writes infinities, which standard JSON lacks."""
    config = read_json(file, required=False, infinite=True)
    configs.check("scheduler", config, file)
    return config


def _own_noise(scheduler: Mapping[str, Any], family: str, unet: Mapping[str, Any], path: Path) -> bool:
    """Whether it was trained with EDM's noise; of these sdcli draws with what is like Playground v2.5."""
    if not edm.is_edm(scheduler):
        return False
    predicts = scheduler.get("prediction_type", "epsilon")
    if family != edm.FAMILY or predicts != "epsilon" or _kind(family, unet) != family:
        raise BadFile(
            f"{show(path)} was trained with EDM's noise, predicts {show(predicts, 40)} and is like no model that sdcli "
            "draws with",
            hint=_ANOTHER,
        )
    return True


def _prediction(scheduler: Mapping[str, Any], path: Path) -> str:
    named = scheduler.get("prediction_type", "epsilon")
    if named in _PREDICTIONS:
        return str(named)
    raise BadFile(
        f"{show(path)} predicts {show(named, 40)}; sdcli supports {' and '.join(_PREDICTIONS)}", hint=_ANOTHER
    )


def _native(components: Mapping[str, Component], usual: tuple[int, int] | None) -> dict[str, int]:
    """The size its UNet was trained at, where that is not the family's."""
    side = components["unet"].config.get("sample_size")
    if not isinstance(side, int) or isinstance(side, bool):
        return {}
    pixels = side * vae.scale(components["vae"].config)
    if (pixels, pixels) == usual or not 64 <= pixels <= 4096:
        return {}
    return {"width": pixels, "height": pixels}


CLIP_TOKENS = 49_408


def _vocabulary(components: Mapping[str, Component], path: Path) -> str | None:
    """The folder of its own tokens, if they are fewer than CLIP's; more are CLIP's, then added words."""
    size = next(components[part] for part in ENCODERS if part in components).config.get("vocab_size", CLIP_TOKENS)
    if not isinstance(size, int) or size >= CLIP_TOKENS:
        return None
    for file in (path / "tokenizer" / "vocab.json", path / "tokenizer" / "merges.txt"):
        if not file.exists():
            raise ModelMissing(f"{show(file)} is missing", hint=_AGAIN)
        if not file.is_file():
            raise BadFile(f"{show(file)} is no file", hint=_AGAIN)
        if file.stat().st_size > LARGEST_JSON:  # the library reads it whole
            raise BadFile(f"{show(file)} is larger than {size_text(LARGEST_JSON)}", hint=_AGAIN)
    return str(path / "tokenizer")


_SETTINGS: dict[str, tuple[type, ...]] = {
    "width": (int,), "height": (int,), "steps": (int,), "guidance": (int, float), "sampler": (str,)
}  # fmt: skip


def _defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults in the model's own index, under `sdcli`: only plain settings of the right type."""
    settings = _sdcli_settings(index)
    return {
        name: settings[name]
        for name, types in _SETTINGS.items()
        if isinstance(settings.get(name), types) and not isinstance(settings[name], bool)
    }


def _preview(index: Mapping[str, Any], components: Mapping[str, Component]) -> tuple[tuple[float, float, float], ...]:
    """Red, green and blue of each latent channel, in the index under `sdcli`; an extra last row is an offset."""
    preview = _sdcli_settings(index).get("preview")
    channels = components["vae"].config.get("latent_channels", 4)
    rows = preview if isinstance(preview, list) and len(preview) in (channels, channels + 1) else []
    plain = all(isinstance(row, list) and len(row) == 3 and all(map(configs.is_number, row)) for row in rows)
    return tuple((float(row[0]), float(row[1]), float(row[2])) for row in rows) if plain else ()


def _sdcli_settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = index.get("sdcli")
    return settings if isinstance(settings, dict) else {}
