"""The units of A1111's ControlNet extension, as generate's settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sdcli.errors import ModelMissing
from sdcli.images import control, fit, read
from sdcli.record.encode import saved
from sdcli.serve.bodies import BadBody
from sdcli.serve.sdapi_body import Body, content_of
from sdcli.serve.sdapi_names import CONTROL, Names, path_of
from sdcli.serve.sdapi_schemas import (
    ANYTHING,
    IMAGE,
    ONE_IMAGE,
    TEXT,
    YES,
    Fields,
    Kind,
    Schema,
    any_list,
    any_number,
    any_object,
    check,
    of_object,
)
from sdcli.serve.service import Service
from sdcli.terminal import show

SCRIPT = "controlnet"
MODULES = {
    "none": "none", "canny": "canny", "scribble": "scribble", "tile_resample": "tile", "tile": "tile",
    "invert": "invert", "invert (from white bg & black line)": "invert",
}  # fmt: skip
_FITS = {
    "just resize": "stretch", "0": "stretch", "crop and resize": "crop", "1": "crop",
    "scale to fit (inner fit)": "crop", "resize and fill": "pad", "2": "pad", "envelope (outer fit)": "pad",
}  # fmt: skip
_MODES = {
    "balanced": False, "0": False, "controlnet is more important": True, "2": True,
}  # fmt: skip
# A threshold of Canny that is as here: the extension's own, what it has for "as usual", and what webuiapi always sends.
_THRESHOLDS = {"threshold_a": (100, -1, 64, 0), "threshold_b": (200, -1, 64, 0)}

DETECTED = ("controlnet_images", "controlnet_input_images")
# Of one request with a single unit: what a unit has, and the fields that say it.
_FLAT = {
    "module": "controlnet_module", "model": "controlnet_model", "weight": "controlnet_weight",
    "resize_mode": "controlnet_resize_mode", "threshold_a": "controlnet_threshold_a",
    "threshold_b": "controlnet_threshold_b", "guidance_end": "controlnet_guidance", "guessmode": "guess_mode",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[tuple[str, ...], str]] = {
    "mask": (("",), "a unit acts on the whole image"),
    "hr_option": (("Both", "HiResFixOption.BOTH"), "a unit steers both passes"),
}


_UNIT: Fields = {
    "enabled": YES, "model": TEXT, "module": TEXT, "image": ANYTHING, "input_image": ANYTHING, "weight": any_number(),
    "guidance_start": any_number(), "guidance_end": any_number(), "resize_mode": ANYTHING, "control_mode": ANYTHING,
    "guessmode": YES, "union_control_type": TEXT, **dict.fromkeys((*_NEUTRAL, *_THRESHOLDS), ANYTHING),
}  # fmt: skip
_ONE_UNIT = {"properties": of_object(_UNIT)["properties"]}
# Of a body, those that hold units. Other scripts have to be off.
FIELDS: Fields = {
    "alwayson_scripts": any_object({SCRIPT: Kind({"properties": {"args": {"items": _ONE_UNIT}}})}),
    "controlnet_units": any_list({"type": "object", **_ONE_UNIT}),
    "controlnet_image": any_list(IMAGE.schema), "controlnet_mask": any_list({}),
    **{field: _UNIT[name] for name, field in _FLAT.items()},
}  # fmt: skip
DETECT: Schema = {
    **of_object({"controlnet_module": TEXT, **dict.fromkeys(DETECTED, any_list(ONE_IMAGE.schema))}),
    "anyOf": [{"required": [name], "properties": {name: {"type": "array", "minItems": 1}}} for name in DETECTED],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Unit:
    net: str
    union: bool
    shows: str
    image: str
    module: str
    weight: float
    start: float
    end: float
    fit: str
    guesses: bool


def settings(
    body: Body, service: Service, names: Names, start: str | None = None, start_fit: str | None = None
) -> dict[str, Any]:
    """`start` is the image that is drawn from, which steers too where a unit has none of its own."""
    every = list(_given(body))
    for given in every:
        check(given, _UNIT)
    units = [_unit(given, service, names, start) for given in every if given.yes("enabled") is not False]
    if not units:
        return {}
    if len({unit.guesses for unit in units}) > 1:
        raise body.refused("control_mode", "all units have the same")
    fits = {unit.fit for unit in units} | ({start_fit} if start_fit else set())
    if len({unit.module for unit in units}) > 1 or (len(fits) > 1 and not _in_part(body)):
        units = [_prepared(unit, body, service) for unit in units]
    values: dict[str, Any] = {"control": [_text(unit) for unit in units], "control_from": units[0].module}
    return values | {"guess_mode": units[0].guesses, "fit": start_fit or units[0].fit}


def _given(body: Body) -> Iterator[Body]:
    """Of alwayson_scripts, where every other script has to be off; and of what was once a route of its own."""
    scripts = body.inner("alwayson_scripts")
    for name, value in scripts.fields.items():
        args = value.get("args", []) if isinstance(value, Mapping) else value or []
        if name.casefold() == SCRIPT:
            listed = list(args.values()) if isinstance(args, Mapping) else args
            if not isinstance(listed, list):
                raise scripts.refused(name, "expected a list of units")
            units = [(number, unit) for number, unit in enumerate(listed) if isinstance(unit, Mapping)]
            yield from (scripts.inner_of(f"{name}.args", unit, number) for number, unit in units)
        elif not _off(args):
            raise scripts.refused(name, "not a script of this server")
    for number, unit in enumerate(body.listed("controlnet_units")):
        yield body.inner_of("controlnet_units", unit, number)
    for number, image in enumerate(body.listed("controlnet_image")):
        yield Body(_flat(body, image), f"controlnet_image[{number}].", body.given)


def _off(args: Any) -> bool:
    """Whether a script would do nothing: no arguments, or the first of them turns it off."""
    first = args[0] if isinstance(args, list) and args else args
    if isinstance(first, Mapping) and first:
        return first.get("enabled", first.get("enable")) is False
    return not first


def _flat(body: Body, image: Any) -> dict[str, Any]:
    """Of one request with a single unit, under names of their own."""
    unit = {name: body.fields.get(field) for name, field in _FLAT.items()}
    masks = [mask for mask in body.listed("controlnet_mask") if mask]
    return {**unit, "image": image, "mask": masks[0] if masks else None}


def _unit(given: Body, service: Service, names: Names, start: str | None) -> Unit:
    for name, (values, because) in _NEUTRAL.items():
        given.neutral(name, values, because)
    module = module_of(given)
    if module == "canny":
        for name, usual in _THRESHOLDS.items():
            given.neutral(name, usual, "lines are found with 100 and 200")
    start_at, end_at = given.number("guidance_start"), given.number("guidance_end")
    weight = given.number("weight")
    found = 1.0 if weight is None else weight, start_at or 0.0, 1.0 if end_at is None else end_at
    if not 0 <= found[0] < 1000:
        raise given.refused("weight", f"{found[0]:g} is not between 0 and 1000")
    if not 0 <= found[1] < found[2] <= 1:
        raise given.refused("guidance_end", f"{found[1]:g} to {found[2]:g} is no part of 0 to 1")
    net, union = _net(given, names)
    return Unit(
        net=net, union=union, shows=_shows(given), image=_image(given, service, start), module=module,
        weight=found[0], start=found[1], end=found[2], fit=_of(given, "resize_mode", _FITS, "crop"),
        guesses=bool(given.yes("guessmode")) or _of(given, "control_mode", _MODES, False),
    )  # fmt: skip


def module_of(given: Body) -> str:
    text = given.text("module") or "none"
    module = MODULES.get(text.casefold())
    if module is None:
        raise given.refused("module", f'"{show(text, 60)}" is not one of {", ".join(listed_modules())}')
    return module


def listed_modules() -> list[str]:
    return [name for name in MODULES if name != "tile" and not name.startswith("invert (")]


def _net(given: Body, names: Names) -> tuple[str, bool]:
    """Its path, and whether it is a ControlNet Union."""
    text = given.text("model") or ""
    if text in ("", "None"):
        raise given.refused("model", "a unit needs a model")
    try:
        found = names.beside(text, "ControlNet", *CONTROL)
    except ModelMissing as missing:
        raise given.refused("model", missing.message) from None
    if "=" in path_of(found):
        raise given.refused("model", "a path with = cannot be named")
    return path_of(found), found.kind == "controlnet-union"


def _shows(given: Body) -> str:
    """Of a ControlNet Union: "Canny Edge", "hed/pidi/scribble/ted"."""
    text = (given.text("union_control_type") or "").casefold()
    known = (control.shown_by(word) for word in text.replace("/", " ").split())
    return next((word for word in known if word), "")


def _image(given: Body, service: Service, start: str | None) -> str:
    value = given.fields.get("image") or given.fields.get("input_image")
    if isinstance(value, Mapping):
        Body(value, given.where + "image.").neutral("mask", ("",), "a unit acts on the whole image")
        value = value.get("image")
    if value:
        return given.kept(content_of(value, given.where + "image"), "image", service.upload)
    if start is None:
        raise given.refused("image", "a unit needs an image")
    return start


def _of(given: Body, name: str, choices: Mapping[str, Any], usual: Any) -> Any:
    value = given.fields.get(name)
    if value is None:
        return usual
    chosen = choices.get(str(value).casefold())
    if chosen is None:
        raise given.refused(name, f"{show(value, 40)} is not supported")
    return chosen


def _prepared(unit: Unit, body: Body, service: Service) -> Unit:
    """With its image made for the size that is drawn: a request of generate has one way to do that for all."""
    width, height = body.whole("width"), body.whole("height")
    if not width or not height or body.yes("enable_hr") or _in_part(body):
        raise BadBody(
            "module, resize_mode: units that differ in these need width and height, and go neither with enable_hr nor "
            "with inpaint_full_res",
            "module",
        )
    if not 64 <= width * height <= read.MOST_PIXELS:
        raise body.refused("width", f"{width}×{height} is too small or too large")
    image = control.prepared(fit.fitted(read.decoded(unit.image), width, height, unit.fit), unit.module)
    shows = unit.shows or (unit.module if unit.union and unit.module in control.SHOWN else "")
    return replace(unit, image=service.upload(saved(image, "PNG")), module="none", shows=shows)


def _in_part(body: Body) -> bool:
    """Whether only a part of an image is drawn: whatever the resize mode, a control image lies on all of it."""
    return bool(body.fields.get("mask")) and body.yes("inpaint_full_res") is not False


def _text(unit: Unit) -> str:
    """As --control has it."""
    net = f"{unit.net}:{unit.shows}" if unit.shows else unit.net
    start, end = (f"{share:.6f}".rstrip("0").rstrip(".") for share in (unit.start, unit.end))
    return f"{net}={unit.image}:{unit.weight:.6f}:{start}-{end}"
