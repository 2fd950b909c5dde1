"""What the jobs API takes and gives, for /openapi.json."""

from __future__ import annotations

from typing import Any

from sdcli.request.request import LARGEST_SEED, UPSCALERS
from sdcli.serve import asked, openapi
from sdcli.serve.bounds import PROMPT, Bounds

Schema = dict[str, Any]

_PROMPT: Schema = {"type": "string", "maxLength": PROMPT, "pattern": r"\S"}
_IMAGE: Schema = {"type": "string", "pattern": "^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]*={0,2}$"}
_SEED: Schema = {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED}
_SEEDS: Schema = {
    "anyOf": [
        {**_SEED, "minimum": -1}, {"type": "array", "items": _SEED, "minItems": 1},
        {"type": "string", "pattern": r"^-1$|^[0-9]{1,10}(\.\.[0-9]{1,10})?(,[0-9]{1,10}(\.\.[0-9]{1,10})?)*$"},
    ],
}  # fmt: skip
_LORA: Schema = {"type": "string", "pattern": f"^{asked.LORA.pattern}$", "description": "Its name, or NAME:WEIGHT."}


def _object(required: str, **properties: Any) -> Schema:
    """`required`: their names, with spaces between them."""
    return {"type": "object", "required": required.split(), "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_NUMBER: Schema = {"type": "number"}
_TEXT: Schema = {"type": "string"}
_ANY: Schema = {"type": "object"}
_WHERE: Schema = {
    "status": {"enum": ["queued", "drawing", "done", "failed", "cancelled"]}, "id": _TEXT,
    "position": _or_null({"type": "integer", "description": "Jobs that are drawn before it."}),
    "eta": _or_null({**_NUMBER, "description": "Seconds until it is over, where known."}),
}  # fmt: skip
_SHOWN = _object(
    "index url file format bytes width height status sha256 settings",
    index={"type": "integer"}, url=_TEXT, settings=_ANY,
)  # fmt: skip


def asked_for(bounds: Bounds) -> Schema:
    """What a server with these bounds draws."""
    return {
        "type": "object",
        "additionalProperties": False,
        "oneOf": [{"required": ["prompt"]}, {"required": ["prompts"]}],
        "not": {"required": ["seed", "seeds"]},
        "properties": {
            **openapi.settings(asked.SETTINGS, bounds), "prompt": _PROMPT,
            "prompts": {"type": "array", "items": _PROMPT, "minItems": 1, "maxItems": bounds.images}, "seed": _SEEDS,
            "seeds": _SEEDS, "lora": {"anyOf": [_LORA, {"type": "array", "items": _LORA}]}, "image": _IMAGE,
            "mask": {**_IMAGE, "description": "What is white in it is drawn anew."},
            "negative_prompt": {**openapi.setting("negative_prompt"), "maxLength": PROMPT},
            "upscaler": {**openapi.setting("upscaler"), "enum": list(UPSCALERS)},
        },
    }  # fmt: skip


SHORT = _object("id status position eta", **_WHERE)
JOB = _object(
    "id status position eta created count step settings images error plan memory seconds", **_WHERE, created=_NUMBER,
    count={"type": "integer"}, settings=_ANY, images={"type": "array", "items": _SHOWN}, plan=_ANY, memory=_ANY,
    error=_or_null(_ANY), step=_or_null(_ANY), seconds=_or_null(_NUMBER),
)  # fmt: skip
JOBS = _object("jobs", jobs={"type": "array", "items": JOB})
PLAN = _object("settings images plan", settings=_ANY, images={"type": "integer"}, plan=_ANY)
WITH_IMAGE: Schema = {**_object("image", image=_IMAGE), "additionalProperties": False}
FOUND = _object("from settings not_taken", settings=_ANY, not_taken={"type": "array", "items": _TEXT})
_DEVICE = _object(
    "device kind name total free draws holds", device=_TEXT, kind=_TEXT, name=_TEXT, total={"type": "integer"},
    free={"type": "integer"}, draws={"type": "boolean"}, holds={"type": "array", "items": _TEXT},
)  # fmt: skip
STATUS = _object(
    "version versions devices model queue drawn most samplers", devices={"type": "array", "items": _DEVICE},
    queue=_ANY, model=_TEXT, drawn={"type": "integer"}, samplers={"type": "array", "items": _TEXT},
)  # fmt: skip
