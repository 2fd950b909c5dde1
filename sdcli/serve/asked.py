"""What a body of /v1/jobs asks for, by the names of generate's settings: as it would be typed."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

from sdcli.near import near_text, nearest
from sdcli.request.options import OPTIONS
from sdcli.request.request import UPSCALERS
from sdcli.serve import openapi
from sdcli.serve.bodies import BadBody
from sdcli.terminal import show

# None of these names a file on this machine, or decides where and how it draws.
SETTINGS = frozenset({
    "model", "negative_prompt", "steps", "guidance", "seeds", "num_images", "size", "width", "height", "sampler",
    "preset", "emphasis", "clip_skip", "rng", "strength", "fit", "image_guidance", "mask_blur", "only_masked",
    "mask_padding", "masked_content", "outpaint", "hires", "hires_steps", "hires_strength", "upscaler",
    "batch_invariant", "format", "metadata",
})  # fmt: skip
IMAGES = ("image", "mask")
NAMES = SETTINGS | {"prompt", "prompts", "seed", "lora", *IMAGES}
_SWITCHES = frozenset(option.field for option in OPTIONS if option.switch)
_LORA = re.compile(r"[^<>:/\\]{1,200}(:-?\d{1,3}(\.\d{1,6})?)?")
_DATA = re.compile(r"data:[a-z0-9.+/-]{0,60};base64,", re.ASCII | re.IGNORECASE)


IMAGE = {
    "type": "object", "required": ["image"], "additionalProperties": False, "properties": {"image": {"type": "string"}},
}  # fmt: skip


def schema() -> dict[str, Any]:
    """For /openapi.json. A number may be text, as it would be typed, and null is as good as nothing."""
    settings = openapi.settings(SETTINGS, {"seed": "seeds"})
    for name in settings.keys() - _SWITCHES:
        settings[name]["type"] = sorted({settings[name]["type"], "string", "null"})
        if "enum" in settings[name]:
            settings[name]["enum"].append(None)
    for name in ("seed", "seeds"):
        settings[name]["type"] = ["array", "integer", "null", "string"]
    texts = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    others = {"prompt": {"type": "string"}, "prompts": texts["anyOf"][1], "lora": texts, "image": {"type": "string"}}
    return {
        "type": "object", "additionalProperties": False,
        "properties": {**settings, **others, "mask": {"type": "string"}},
        "oneOf": [{"required": ["prompt"]}, {"required": ["prompts"]}],
    }  # fmt: skip


def values(body: Mapping[str, Any], upload: Callable[[bytes], str], given: dict[str, str]) -> dict[str, Any]:
    """`upload` keeps an image that came along and says where, as generate would be given it. `given` takes in what the
    body calls it, and what else it has another name for."""
    typed: dict[str, Any] = {}
    for name, value in body.items():
        if name not in NAMES:
            raise BadBody(f"unknown field {show(name, 60)!r}{near_text(nearest(name, NAMES, 1))}", name)
        if value is None or name in ("prompt", "prompts", "lora"):
            continue
        if name in IMAGES:
            path = upload(image_in(name, value))
            given[path] = name
            typed[name] = [path] if name == "image" else path
        else:
            typed["seeds" if name == "seed" else name] = _typed(name, value)
    if typed.get("upscaler", UPSCALERS[0]) not in UPSCALERS:
        raise BadBody(f"upscaler has to be one of {', '.join(UPSCALERS)}", "upscaler")
    given |= {"seeds": "seed"} if "seed" in body else {}
    typed["prompts"] = tuple(_prompts(body))
    return typed


def _prompts(body: Mapping[str, Any]) -> list[str]:
    """LoRAs stand in them as tags: a tag holds a name, and never a path."""
    if ("prompt" in body) == ("prompts" in body):
        raise BadBody("either prompt or prompts has to be there", "prompt")
    several = _texts("prompts", body["prompts"]) if "prompts" in body else _texts("prompt", [body["prompt"]])
    loras = body.get("lora") or []
    tags = "".join(f" <lora:{_lora(text)}>" for text in _texts("lora", loras if isinstance(loras, list) else [loras]))
    return [prompt + tags for prompt in several]


def _texts(name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadBody(f"{name} has to be text{'' if name == 'prompt' else ', or a list of texts'}", name)
    if name == "prompts" and not values:
        raise BadBody("prompts is empty", name)
    return values


def _lora(text: str) -> str:
    if _LORA.fullmatch(text) is None:
        raise BadBody("lora has to be the name of one, or NAME:WEIGHT", "lora")
    return text if ":" in text else f"{text}:1"


def _typed(name: str, value: Any) -> Any:
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise BadBody(f"{name} has to be true or false", name)
        return value
    if name in ("seed", "seeds") and isinstance(value, list) and value:
        return ",".join(_number(name, one) for one in value)
    return value if isinstance(value, str) else _number(name, value)


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadBody(f"{name} has to be a number or text", name)
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


def image_in(name: str, value: Any) -> bytes:
    """The bytes of a data URL. Other URLs are never fetched."""
    start = _DATA.match(value) if isinstance(value, str) else None
    if start is None:
        raise BadBody(f"{name} has to be an image as a data URL, data:image/png;base64,…", name)
    try:
        return base64.b64decode(value[start.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise BadBody(f"{name} is no valid base64", name) from None
