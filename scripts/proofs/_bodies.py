"""Hooks for schemathesis, which imports this file in an environment of its own: images that are images where a body
holds one, names that exist where it names something, and a check of what is refused."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from typing import Any

import schemathesis
from hypothesis import strategies

SAMPLERS = (
    "Euler",
    "Euler a",
    "DDIM",
    "DPM++ 2M",
    "DPM++ 2M Karras",
    "UniPC",
    "LCM",
    "euler_ancestral",
    "nothing like it",
)
MODELS = ("builtin", "sd15", "../../etc/passwd")
PROMPTS = ("a cat", "a (cat:1.3) <lora:x:1>")
SIZES = ("64x64", "128x64", "128X128", "auto", "9999x9999", "65x65")


def _png(width: int, height: int, colours: int) -> bytes:
    """Of one colour; `colours`: 2 as PNG counts them is RGB, 6 with what is transparent."""
    head = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    rows = b"".join(b"\0" + bytes((3 if colours == 2 else 4) * width) for _ in range(height))
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


_FILES = (_png(64, 64, 2), _png(64, 64, 6), _png(128, 64, 2), _png(64, 64, 2)[:-20], b"GIF89a", b"")
_WHOLE = strategies.sampled_from(_FILES[:3])
_ANY = strategies.one_of(_WHOLE, _WHOLE, _WHOLE, strategies.sampled_from(_FILES), strategies.binary(max_size=64))
_BASE64 = _ANY.map(lambda content: base64.b64encode(content).decode())
_FORMATS = {
    "image-file": _ANY,
    "image-base64": _BASE64,
    "image-url": _BASE64.map(lambda text: f"data:image/png;base64,{text}"),
    "sampler": strategies.sampled_from(SAMPLERS),
    "model": strategies.sampled_from(MODELS),
    "size": strategies.sampled_from(SIZES),
    "prompt": strategies.one_of(strategies.text(max_size=200), strategies.sampled_from(PROMPTS)),
}
for name, strategy in _FORMATS.items():
    schemathesis.openapi.format(name, strategy)
_BY_NAME = {
    **dict.fromkeys(("sampler", "sampler_name", "sampler_index", "hr_sampler_name"), "sampler"),
    **dict.fromkeys(("model", "sd_model_checkpoint"), "model"), "size": "size", "prompt": "prompt",
}  # fmt: skip


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """The document's own words stay; what stands for an image or a name is drawn from those above."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                _choose(content["schema"], first=kind != "application/json")
                _enrich(content["schema"], "")


def _choose(schema: dict[str, Any], first: bool) -> None:
    """Of names that say the same one stays, in one document the first and in the other the last: schemathesis draws no
    body where a rule says that they do not go together."""
    for rule in schema.pop("allOf", ()):
        for name in rule["not"]["required"][1:] if first else rule["not"]["required"][:-1]:
            schema["properties"].pop(name, None)
    if "image[]" in schema.get("properties", ()):
        del schema["anyOf"], schema["properties"]["image[]"]
        schema["required"].append("image")
    if "controlnet_input_images" in schema.get("properties", ()):
        del schema["anyOf"], schema["properties"]["controlnet_images"]
        schema["required"] = ["controlnet_input_images"]


def _enrich(schema: Any, name: str) -> None:
    if isinstance(schema, list):
        for one in schema:
            _enrich(one, name)
    if not isinstance(schema, dict):
        return
    if "string" in (kinds := schema.get("type", ())) or kinds == "string":
        if schema.get("contentEncoding") == "base64":
            schema["format"] = "image-base64"
            del schema["contentEncoding"]
        elif schema.get("format") == "binary":
            pass
        elif schema.get("pattern", "").startswith("^data:image"):
            schema["format"] = "image-url"
        elif name in _BY_NAME and "enum" not in schema:
            schema["format"] = _BY_NAME[name]
    for key in ("anyOf", "allOf", "oneOf", "items"):
        _enrich(schema.get(key), name)
    for inner, own in schema.get("properties", {}).items():
        _enrich(own, inner)


_OF_ANY = re.compile(
    r".+: (a number is too large|a text holds half of a surrogate pair|the body is nested .*)", re.DOTALL
)


@schemathesis.check
def a_refusal_names_its_field(context: Any, response: Any, case: Any) -> None:
    """What the document allows may still be refused, for what it cannot say: fields that do not go together, names of
    nothing, files that are no images. Then the answer says which field."""
    meta = case.meta
    if response.status_code not in (400, 422) or meta is None or not meta.generation.mode.is_positive:
        return
    bodies = case.operation.definition.raw.get("requestBody", {}).get("content", {}).values()
    error = json.loads(response.content)
    said = error["detail"] if "detail" in error else error["error"]["message"]
    named = None if "detail" in error else error["error"]["param"]
    names = {*(case.body if isinstance(case.body, dict) else ()), *(name for one in bodies for name in _listed(one))}
    whole = _OF_ANY.fullmatch(said)  # escaped, where it is no plain name
    assert named or whole or any(name in said for name in names), f"no field is named: {said}"


def _listed(content: dict[str, Any]) -> list[str]:
    return list(content["schema"].get("properties", ()))
