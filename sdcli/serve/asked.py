"""What a body of /v1/jobs asks for, by the names of generate's settings: as it would be typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sdcli.near import near_text, nearest
from sdcli.request.request import UPSCALERS
from sdcli.serve.bodies import BadBody, from_base64, in_data_url
from sdcli.serve.openapi import setting
from sdcli.serve.uploads import kept
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
LORA = re.compile(r"[^<>:/\\]{1,200}(:-?\d{1,3}(\.\d{1,6})?)?")


def values(body: Mapping[str, Any], upload: Callable[[bytes], str], given: dict[str, str]) -> dict[str, Any]:
    """`upload` keeps an image that came along and says where, as generate would be given it. `given` takes in what the
    body calls it, and what else it has another name for."""
    typed: dict[str, Any] = {}
    if "seed" in body and "seeds" in body:
        raise BadBody("seed and seeds are the same; one of them is enough", "seeds")
    for name, value in body.items():
        if name not in NAMES:
            raise BadBody(f"unknown field {show(name, 60)!r}{near_text(nearest(name, NAMES, 1))}", name)
        if name in ("prompt", "prompts", "lora"):
            continue
        if name in IMAGES:
            path = kept(upload, image_in(name, value), name, given)
            typed[name] = [path] if name == "image" else path
        else:
            typed["seeds" if name == "seed" else name] = _typed(name, value)
    if typed.get("upscaler", UPSCALERS[0]) not in UPSCALERS:
        raise BadBody(f"upscaler has to be one of {', '.join(UPSCALERS)}", "upscaler")
    given |= {"seeds": "seed"} if "seed" in body else {}
    given["prompts"] = "prompts" if "prompts" in body else "prompt"
    typed["prompts"] = tuple(_prompts(body))
    return typed


def _prompts(body: Mapping[str, Any]) -> list[str]:
    """LoRAs stand in them as tags: a tag holds a name, and never a path."""
    if ("prompt" in body) == ("prompts" in body):
        raise BadBody("either prompt or prompts has to be there", "prompt")
    several = _texts("prompts", body["prompts"]) if "prompts" in body else _texts("prompt", [body["prompt"]])
    loras = body.get("lora", [])
    tags = "".join(f" <lora:{_lora(text)}>" for text in _texts("lora", loras if isinstance(loras, list) else [loras]))
    return [prompt + tags for prompt in several]


def _texts(name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadBody(f"{name} has to be text{'' if name == 'prompt' else ', or a list of texts'}", name)
    if name == "prompts" and not values:
        raise BadBody("prompts is empty", name)
    return values


def _lora(text: str) -> str:
    if LORA.fullmatch(text) is None:
        raise BadBody("lora has to be the name of one, or NAME:WEIGHT", "lora")
    return text if ":" in text else f"{text}:1"


def _typed(name: str, value: Any) -> Any:
    if name in ("seed", "seeds"):
        return _seeds(name, value)
    declared = setting(name)
    kind = declared["type"]
    if isinstance(value, bool) != (kind == "boolean") or not isinstance(value, _KINDS[kind]):
        raise BadBody(f"{name} has to be {_WORDS[kind]}", name)
    if value not in declared.get("enum", [value]):
        raise BadBody(f"{name} has to be one of {', '.join(declared['enum'])}", name)
    if kind == "integer" and int(value) != value:
        raise BadBody(f"{name} has to be {_WORDS[kind]}", name)
    if not declared.get("minimum", value) <= value <= declared.get("maximum", value):
        raise BadBody(f"{name} has to be from {declared['minimum']} to {declared['maximum']}", name)
    return value if kind in ("boolean", "string") else _digits(value)


_KINDS: dict[str, Any] = {"integer": (int, float), "number": (int, float), "boolean": bool, "string": str}
_WORDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}


def _digits(value: float) -> str:
    """As it would be typed: without an exponent."""
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _seeds(name: str, value: Any) -> str:
    listed = value if isinstance(value, list) else [value]
    if isinstance(value, str):
        return value
    if not listed or any(isinstance(one, bool) or not isinstance(one, int) for one in listed):
        raise BadBody(f"{name} has to be a whole number, a list of them, or text such as 1..8", name)
    if isinstance(value, list) and min(value) < 0:
        raise BadBody(f"{name}: -1, a random one, stands alone and in no list", name)
    return ",".join(map(str, listed))


def image_in(name: str, value: Any) -> bytes:
    """The bytes of a data URL. Other URLs are never fetched."""
    text = in_data_url(value) if isinstance(value, str) else None
    if text is None:
        raise BadBody(f"{name} has to be an image as a data URL, data:image/png;base64,…", name)
    content = from_base64(text)
    if content is None:
        raise BadBody(f"{name} is no valid base64", name)
    return content
