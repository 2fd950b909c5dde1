"""The fields of OpenAI's Images API, and generate's settings beside them: what each takes, and what it becomes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from sdcli.near import near_text, nearest
from sdcli.request.jobs import SIDES
from sdcli.request.options import OPTIONS
from sdcli.request.request import LARGEST_SEED, UPSCALERS
from sdcli.request.tags import lora_tag
from sdcli.serve.bodies import BadBody
from sdcli.serve.bounds import PROMPT, Bounds
from sdcli.terminal import show

MOST_IMAGES = 10
MOST_PARTIAL = 3
FORMATS = {"png": "png", "jpeg": "jpg", "jpg": "jpg", "webp": "webp"}  # its names, and sdcli's
PLAIN = 100  # output_compression: nothing is compressed away


class BadField(BadBody):
    """A body's field that is wrong; `code` as OpenAI names what is wrong with it."""

    def __init__(self, message: str, field: str | None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message, field)
        self.code = code
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Field:
    """`setting`: of generate's that it sets. `also`: what other servers call it. `because`: why it is refused."""

    name: str
    kind: str  # text | integer | number | switch | size | lora | control | any
    setting: str = ""
    also: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    within: tuple[float, float] | None = None
    longest: int = 2_000
    null: bool = True  # as if it were not there
    edits: bool = False  # needs an image to change
    because: str = ""
    about: str = ""

    def schema(self, bounds: Bounds, form: bool) -> dict[str, Any]:
        """For /openapi.json; of a part of a form, where all is text and nothing is null."""
        kinds = {"integer": "integer", "number": "number", "switch": "boolean", "text": "string", "size": "string"}
        found: dict[str, Any] = {"description": self.about} if self.about else {}
        null = self.null and not form
        if self.kind not in kinds:
            own = (
                {"type": "string"} if form else {"anyOf": [*_NESTED[self.kind], *([{"type": "null"}] if null else [])]}
            )
            return found | own
        found["type"] = [kinds[self.kind], "null"] if null else kinds[self.kind]
        if self.choices:
            found["enum"] = [*self.choices, *([None] if null else [])]
        if (within := self._within(bounds)) is not None:
            found["minimum"], found["maximum"] = within
        if self.kind == "text" and not self.choices:
            found["maxLength"] = self.longest
        if self.kind == "size":
            found["pattern"] = _SIZE.pattern
        if self.name == "prompt":
            found["pattern"] = r"\S"
        return found

    def _within(self, bounds: Bounds) -> tuple[float, float] | None:
        """What a server with these bounds draws of it."""
        most = bounds.highest.get(_SETTINGS_OF_COUNTS.get(self.name, self.setting))
        if self.within is None or most is None:
            return self.within
        return self.within[0], min(self.within[1], most)


def _own(name: str, kind: str, *also: str, **more: Any) -> Field:
    """A setting of generate under its own name, within generate's bounds."""
    option = next(option for option in OPTIONS if option.field == name)
    given = {"within": option.within, "choices": option.choices, "about": option.help, **more}
    return Field(name=name, kind=kind, setting=name, also=also, **given)


_SETTINGS_OF_COUNTS = {"n": "num_images"}
_ONE_LORA = (
    {"type": "string"},
    {"type": "object", "required": ["name"], "additionalProperties": False, "properties": {
        "name": {"type": "string"}, "scale": {"type": "number"}, "weight": {"type": "number"},
    }},
)  # fmt: skip
_ONE_CONTROL = {
    "type": "object", "required": ["model", "image"], "additionalProperties": False, "properties": {
        "model": {"type": "string"}, "image": {"type": "string", "contentEncoding": "base64"},
        "weight": {"type": "number"}, "start": {"type": "number"}, "end": {"type": "number"},
        "shows": {"type": "string"},
    },
}  # fmt: skip
_NESTED: dict[str, tuple[Any, ...]] = {
    "lora": (*_ONE_LORA, {"type": "array", "items": {"anyOf": list(_ONE_LORA)}}),
    "control": (_ONE_CONTROL, {"type": "array", "items": _ONE_CONTROL}),
}

_SIZE = re.compile(r"^(auto|[1-9][0-9]{0,4}[xX][1-9][0-9]{0,4})$", re.ASCII)

FIELDS = (
    Field(name="prompt", kind="text", longest=PROMPT, null=False, about="What to draw."),
    Field(name="model", kind="text", setting="model", about="One of GET /v1/models."),
    Field(name="n", kind="integer", also=("num_images",), within=(1, MOST_IMAGES), about="Images; seeds count up."),
    Field(name="size", kind="size", setting="size", about="WIDTHxHEIGHT or auto."),
    Field(name="output_format", kind="text", choices=tuple(FORMATS), about="File format."),
    Field(name="output_compression", kind="integer", setting="quality", within=(0, PLAIN),
          about="Quality of jpeg and webp, in percent."),
    Field(name="response_format", kind="text", choices=("b64_json", "url"), about="The image itself, or where it is."),
    Field(name="stream", kind="switch", about="Answer with server-sent events."),
    Field(name="partial_images", kind="integer", within=(0, MOST_PARTIAL), about="Previews of each image in a stream."),
    Field(name="step_events", kind="switch", about="Also tell of each step in a stream, as sdcli.step."),
    Field(name="seed", kind="integer", setting="seeds", also=("seeds",), within=(-1, LARGEST_SEED),
          about="Random if absent, null or -1; the answer says which."),
    _own("negative_prompt", "text", longest=PROMPT),
    _own("steps", "integer", "num_inference_steps", "step"),
    _own("guidance", "number", "guidance_scale", "cfg_scale", "true_cfg_scale"),
    _own("sampler", "text", "sampler_name"),
    _own("width", "integer", within=SIDES),
    _own("height", "integer", within=SIDES),
    Field(name="lora", kind="lora", also=("loras",), about="Names of LoRAs, or {name, scale}."),
    Field(name="control", kind="control", edits=False,
          about="{model, image, weight, start, end, shows}, or a list of them; the image as base64."),
    _own("control_from", "text"),
    _own("guess_mode", "switch"),
    _own("clip_skip", "integer"),
    _own("emphasis", "text"),
    _own("rng", "text"),
    _own("preset", "text"),
    _own("batch_invariant", "switch"),
    _own("metadata", "text"),
    _own("hires", "number"),
    _own("hires_steps", "integer"),
    _own("hires_strength", "number"),
    _own("upscaler", "text", choices=UPSCALERS),
    _own("strength", "number", "denoising_strength", edits=True),
    _own("fit", "text", edits=True),
    _own("image_guidance", "number", "image_cfg_scale", edits=True),
    _own("mask_blur", "integer", edits=True),
    _own("only_masked", "switch", edits=True),
    _own("mask_padding", "integer", edits=True),
    _own("masked_content", "text", edits=True),
    _own("outpaint", "text", edits=True),
)  # fmt: skip

# Taken, and of no use here: no image differs without them.
IGNORED = frozenset({
    "user", "safety_identifier", "moderation", "style", "quality", "complexity", "input_fidelity", "generator_device",
    "vae_use_tiling", "vae_use_slicing", "enable_teacache",
})  # fmt: skip
BACKGROUND = Field(name="background", kind="text", choices=("auto", "opaque", "transparent"))
# Something else would be drawn without them.
REFUSED = {
    "svg": "no SVG is drawn here", "frame_count": "no GIF is drawn here", "frame_duration_ms": "no GIF is drawn here",
    "markup": "marks over an image are not read; a mask says what to repaint",
}  # fmt: skip
FILES = ("image", "mask")  # of an edit: parts that are files

_BY_NAME = {name: field for field in (*FIELDS, BACKGROUND) for name in (field.name, *field.also)}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a body asks for: `typed` by the names of generate's settings, the rest is the API's own."""

    typed: Mapping[str, Any]
    images: int = 1
    seeded: bool = False
    url: bool = False
    stream: bool = False
    partial_images: int = 0
    step_events: bool = False
    control: tuple[Mapping[str, Any], ...] = ()
    ignored: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)  # settings, and the names they were asked for by


def schema(bounds: Bounds, edits: bool = False) -> dict[str, Any]:
    """Of a body, for /openapi.json; of an edit as a form."""
    listed = [each for each in (*FIELDS, BACKGROUND) if edits or not each.edits]
    properties = {name: each.schema(bounds, form=edits) for each in listed for name in (each.name, *each.also)}
    properties |= {name: {"description": "Ignored."} for name in sorted(IGNORED)}
    found: dict[str, Any] = {
        "type": "object", "required": ["prompt"], "additionalProperties": False, "properties": properties,
        "allOf": list(_once(listed, edits)),
    }  # fmt: skip
    if not edits:
        return found
    file = {"type": "string", "format": "binary"}
    found["properties"] |= {
        "image": {**file, "description": "What to change."},
        "image[]": {"type": "array", "items": file, "minItems": 1, "description": "Several, each by itself."},
        "mask": {**file, "description": "Transparent where to repaint."},
    }
    return found | {"anyOf": [{"required": ["image"]}, {"required": ["image[]"]}]}


def _once(listed: Iterable[Field], form: bool) -> Iterator[dict[str, Any]]:
    """Of names that say the same, a body has one."""
    pairs = [pair for each in listed for pair in combinations((each.name, *each.also), 2)]
    for pair in (*pairs, ("size", "width"), ("size", "height")):
        unsaid = {name: ["auto"] if name == "size" else [] for name in pair}
        absent = {name: {"not": {"enum": [*values, *([] if form else [None])]}} for name, values in unsaid.items()}
        said = {name: rule for name, rule in absent.items() if rule["not"]["enum"]}
        yield {"not": {"required": list(pair), **({"properties": said} if said else {})}}


def asked(body: Mapping[str, Any], edits: bool = False) -> Asked:
    """Of a JSON body, or of the parts of a form that `from_parts` read."""
    given, values, ignored = _known(body, edits)
    if "prompt" not in values:
        raise BadField("prompt is missing", "prompt", "missing_required_parameter")
    typed = {each.setting: values[each.name] for each in FIELDS if each.setting and each.name in values}
    prompt = values["prompt"] + "".join(f" {tag}" for tag in values.get("lora", ()))
    if not values["prompt"].strip():
        raise BadField("prompt is empty", "prompt")
    typed["prompts"] = (prompt,)
    images = values.get("n", 1)
    typed["num_images"] = str(images)
    if values.get("seed") == -1:
        del typed["seeds"]
    _size(typed, given)
    _format(typed, values)
    stream = values.get("stream", False)
    if values.get("partial_images") and not stream:
        raise BadField("partial_images needs stream", "partial_images")
    return Asked(
        typed={name: value if isinstance(value, (bool, tuple)) else _text(value) for name, value in typed.items()},
        images=images, seeded="seeds" in typed, url=values.get("response_format") == "url", stream=stream,
        partial_images=values.get("partial_images", 0), step_events=values.get("step_events", False),
        control=values.get("control", ()), ignored=ignored,
        given=given | {"num_images": "n", "prompts": "prompt", "width": "size", "height": "size"} | {
            each.setting: given[each.setting] for each in FIELDS if each.setting in given
        },
    )  # fmt: skip


def _known(body: Mapping[str, Any], edits: bool) -> tuple[dict[str, str], dict[str, Any], tuple[str, ...]]:
    """By what name each setting was asked for, the values by the fields' own names, and what was ignored."""
    given: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, value in body.items():
        if name in REFUSED:
            raise refused_field(name)
        if name in IGNORED:
            continue
        found = _BY_NAME.get(name)
        if found is None:
            raise _unknown(name, edits)
        if found.edits and not edits:
            message = f"{name} needs an image to change: /v1/images/edits takes one"
            raise BadField(message, name, "unsupported_parameter")
        if value is None and found.null:
            continue
        if found.name in values:
            earlier = given[found.setting or found.name]
            raise BadField(f"{earlier} and {name} are the same; one of them is enough", name)
        given[found.setting or found.name] = name
        values[found.name] = _value(found, name, value)
    if values.get("background") == "transparent":
        raise BadField("background: images are opaque here", "background", "unsupported_parameter")
    ignored = tuple(name for name in body if name in IGNORED and body[name] not in (None, "auto"))
    return given, values, ignored


def refused_field(name: str) -> BadField:
    return BadField(f"{name} is not supported: {REFUSED[name]}", name, "unsupported_parameter")


def _unknown(name: str, edits: bool) -> BadField:
    names = {*_BY_NAME, *IGNORED, *(FILES if edits else ())}
    if name in (*FILES, "image[]", "mask[]"):
        message = f"{name} belongs to /v1/images/edits, where it is a file of a form"
        return BadField(message, name, "unknown_parameter")
    near = near_text(nearest(name, names, 1))
    return BadField(f"unknown field {show(name, 60)!r}{near}", name, "unknown_parameter")


def _value(found: Field, name: str, value: Any) -> Any:
    checked: Any = _READ[found.kind](name, value)
    if found.choices and checked not in found.choices:
        near = near_text(nearest(str(checked), found.choices, 1))
        raise BadField(f"{name}: {_quoted(checked)} is not one of {', '.join(found.choices)}{near}", name)
    if found.within is not None and not found.within[0] <= checked <= found.within[1]:
        lowest, highest = (f"{bound:g}" if bound < 1e6 else f"{bound:.0f}" for bound in found.within)
        raise BadField(f"{name}: {_text(checked)} is not between {lowest} and {highest}", name)
    if found.kind == "text" and len(checked) > found.longest:
        raise BadField(f"{name} has {len(checked)} characters; {found.longest} are the most", name)
    return checked


# --- one value


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    return value


def _integer(name: str, value: Any) -> int:
    """9.0 is one: JSON knows only numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise _wrong(name, "a whole number", value)
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(name, "a number", value)
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _sides(name: str, value: Any) -> str:
    if _SIZE.fullmatch(_string(name, value)) is None:
        raise BadField(f"{name}: {_quoted(value)} is not WIDTHxHEIGHT, as in 1024x768, nor auto", name)
    return str(value)


def _loras(name: str, value: Any) -> tuple[str, ...]:
    """As tags of a prompt, which name files of the server's folders and never a path."""
    return tuple(_lora(name, one) for one in (value if isinstance(value, list) else [value]))


def _lora(name: str, value: Any) -> str:
    if isinstance(value, str):
        called, colon, scale = value.rpartition(":")
        value = {"name": called, "scale": _as_number(name, scale)} if colon else {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise _wrong(name, "the name of a LoRA, NAME:WEIGHT, or {name, scale}", value)
    if "path" in value:
        raise BadField(f"{name}: a path is never taken; name says which LoRA", name)
    other = next((key for key in value if key not in ("name", "scale", "weight")), None)
    if other is not None:
        raise BadField(f"{name}: unknown field {show(other, 60)!r}", name, "unknown_parameter")
    weight = _number(name, value.get("scale", value.get("weight", 1.0)))
    tag = lora_tag(value["name"], weight) if abs(weight) < 10_000 else ""
    if not tag:
        raise BadField(f"{name}: {_quoted(value['name'])} is not the name of a LoRA", name)
    return tag


def _as_number(name: str, text: str) -> float:
    try:
        return float(text) if len(text) < 20 else float("nan")
    except ValueError:
        raise BadField(f"{name}: {_quoted(text)} is not a weight", name) from None


def _controls(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    listed = value if isinstance(value, list) else [value]
    for one in listed:
        if not isinstance(one, Mapping) or not {"model", "image"} <= one.keys():
            raise _wrong(name, "{model, image}, or a list of these", value)
        for key, item in one.items():
            if key in ("weight", "start", "end"):
                _number(f"{name}.{key}", item)
            elif key in ("model", "image", "shows"):
                _string(f"{name}.{key}", item)
            else:
                near = near_text(nearest(key, ("model", "image", "shows", "weight", "start", "end"), 1))
                raise BadField(f"{name}: unknown field {show(key, 60)!r}{near}", name, "unknown_parameter")
    return tuple(listed)


_READ = {
    "text": _string, "integer": _integer, "number": _number, "switch": _switch, "size": _sides, "lora": _loras,
    "control": _controls,
}  # fmt: skip


def _wrong(name: str, what: str, value: Any) -> BadField:
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}
    got = "null" if value is None else kinds.get(type(value), "something else")
    return BadField(f"{name} has to be {what}, and is {got}", name, "invalid_type")


def _quoted(value: Any) -> str:
    return f'"{show(value, 60)}"'


def _text(value: Any) -> str:
    """As it would be typed."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


# --- what belongs together


def _size(typed: dict[str, Any], given: Mapping[str, str]) -> None:
    if typed.get("size") == "auto":
        del typed["size"]
    if "size" in typed and ("width" in typed or "height" in typed):
        side = given["width" if "width" in typed else "height"]
        raise BadField(f"size and {side} say the same; one of them is enough", side)


def _format(typed: dict[str, Any], values: Mapping[str, Any]) -> None:
    if "output_format" in values:
        typed["format"] = FORMATS[values["output_format"]]
    if values.get("output_compression", PLAIN) < PLAIN and typed.get("format", "png") == "png":
        message = "output_compression: a png keeps every pixel; jpeg and webp can be smaller"
        raise BadField(message, "output_compression")


# --- forms


def from_parts(parts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The texts of a form as JSON would have them."""
    body: dict[str, Any] = {}
    for name, text in parts:
        if name in body:
            raise BadField(f"{name} is there twice", name)
        found = _BY_NAME.get(name)
        body[name] = text if found is None else _PARTS.get(found.kind, _as_it_is)(text)
    return body


def _as_it_is(text: str) -> Any:
    return text


def _as_json(text: str) -> Any:
    """What is no JSON of a number or a switch stays text, and is refused as such."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _as_switch(text: str) -> Any:
    return {"true": True, "false": False, "1": True, "0": False}.get(text.strip().casefold(), text)


_FIGURE = re.compile(r"\s*-?\d{1,18}(\.\d{1,18})?\s*", re.ASCII)
_EXPONENT = re.compile(r"\s*-?\d(\.\d{1,18})?e(\+?\d\d|-\d{2,3})\s*", re.ASCII | re.IGNORECASE)


def _as_integer(text: str) -> Any:
    return _as_json(text) if _FIGURE.fullmatch(text) else text


def _as_figure(text: str) -> Any:
    """Also as programs write very small and very large ones: 1e-05."""
    return _as_json(text) if _EXPONENT.fullmatch(text) else _as_integer(text)


def _as_object(text: str) -> Any:
    return _as_json(text) if text.lstrip()[:1] in ("[", "{") else text


_PARTS = {
    "integer": _as_integer, "number": _as_figure, "switch": _as_switch, "lora": _as_object, "control": _as_object,
}  # fmt: skip
