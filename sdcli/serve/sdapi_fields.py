"""From the fields of A1111's txt2img and img2img to the settings of generate. What is left out is as the server has it;
what A1111 would draw otherwise than this server is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcli.errors import ModelMissing, Usage
from sdcli.images import read
from sdcli.record.encode import saved
from sdcli.request import samplers
from sdcli.request.request import LARGEST_SEED
from sdcli.request.samplers import Sampler
from sdcli.serve import sdapi_controls, sdapi_options
from sdcli.serve.bounds import PROMPT, Bounds
from sdcli.serve.openapi import within
from sdcli.serve.sdapi_body import Body, typed
from sdcli.serve.sdapi_names import Names, path_of
from sdcli.serve.sdapi_schemas import (
    ANYTHING,
    IMAGE,
    ONE_IMAGE,
    TEXT,
    YES,
    Fields,
    Kind,
    Schema,
    any_number,
    any_object,
    any_whole,
    check,
    number_of,
    of_object,
    one_of,
)
from sdcli.serve.service import Service
from sdcli.terminal import show

PREVIEW_EVERY = 5  # steps: what /progress shows

# Of generate's settings those that a field of A1111 stands for: messages name the field.
FIELD_OF = {
    "guidance": "cfg_scale", "seeds": "seed", "num_images": "n_iter × batch_size", "sampler": "sampler_name",
    "hires": "hr_scale", "hires_steps": "hr_second_pass_steps", "hires_strength": "denoising_strength",
    "upscaler": "hr_upscaler", "strength": "denoising_strength", "mask_padding": "inpaint_full_res_padding",
    "masked_content": "inpainting_fill", "only_masked": "inpaint_full_res", "fit": "resize_mode",
    "image": "init_images", "image_guidance": "image_cfg_scale", "vae_file": "sd_vae", "rng": "randn_source",
    "clip_skip": "CLIP_stop_at_last_layers", "format": "samples_format", "negative_prompt": "negative_prompt",
    "mask_blur": "mask_blur", "mask": "mask", "steps": "steps", "width": "width", "height": "height",
    "guess_mode": "control_mode", "control": "alwayson_scripts.ControlNet", "control_from": "module",
    "refiner": "refiner_checkpoint", "prompts": "prompt",
    "size": "width and height",
}  # fmt: skip
# What passes without a word: A1111's defaults, what webuiapi always sends, and spellings of the same.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "subseed_strength": (0, -1), "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1), "styles": ([], [""]),
    "restore_faces": (False,), "tiling": (False,), "s_churn": (0,), "s_min_uncond": (0,), "script_name": ("", "None"),
    "initial_noise_multiplier": (1,), "disable_extra_networks": (False,), "infotext": ("",), "latent_mask": ("",),
}  # fmt: skip
_WITH_HIRES: dict[str, tuple[Any, ...]] = {
    "firstphase_width": (0,), "firstphase_height": (0,), "hr_checkpoint_name": ("", "Use same checkpoint"),
}  # fmt: skip
_SAME = ("", "use same sampler", "use same scheduler")
_FITS = {0: "stretch", 1: "crop", 2: "pad"}
_CONTENTS = {0: "fill", 1: "original", 2: "noise", 3: "nothing"}
_NO_MODEL = {"latent": "latent", "lanczos": "lanczos", "none": "lanczos"}
_ETA = "DDIM"  # draws with 0 here, as in A1111 by default; webuiapi always sends 1


def fields(bounds: Bounds, start: bool) -> Fields:
    """Of a body; `start`: of one with an image to draw from. Others that are there pass too."""
    own = _of_start() if start else _of_hires()
    neutral = {name: one_of(values) for name, values in _NEUTRAL.items()}
    override = any_object(sdapi_options.FIELDS)
    return {**neutral, **_of_both(bounds), **own, **sdapi_controls.FIELDS, "override_settings": override}


def schema(bounds: Bounds, start: bool) -> Schema:
    """For /openapi.json."""
    return of_object(fields(bounds, start), "prompt", *(("init_images",) if start else ()))


def _of_both(bounds: Bounds) -> Fields:
    images = any_whole((1, bounds.images))
    return {
        "prompt": Kind({"type": "string", "maxLength": PROMPT, "pattern": r"\S"}, Body.text),
        "negative_prompt": Kind({**TEXT.schema, "maxLength": PROMPT}, Body.text),
        "seed": any_whole((-1, LARGEST_SEED)), "n_iter": images, "batch_size": images, "sampler_name": TEXT,
        "sampler_index": TEXT, "scheduler": TEXT, "eta": any_number(), "s_noise": ANYTHING,
        "refiner_checkpoint": TEXT, "refiner_switch_at": any_number(),
        "cfg_scale": any_number(within("guidance")), "send_images": ANYTHING,
        **{name: any_whole(within(name, bounds)) for name in ("steps", "width", "height")},
    }  # fmt: skip


def _of_hires() -> Fields:
    """Most are looked at only where enable_hr says so."""
    return {
        "enable_hr": YES, "hr_scale": any_number(), "hr_second_pass_steps": any_whole(), "hr_resize_x": any_whole(),
        "hr_resize_y": any_whole(), "hr_upscaler": TEXT, "hr_prompt": TEXT, "hr_negative_prompt": TEXT,
        "hr_sampler_name": TEXT, "hr_scheduler": TEXT, "denoising_strength": any_number(),
        **dict.fromkeys(_WITH_HIRES, ANYTHING),
    }  # fmt: skip


def _of_start() -> Fields:
    image = {"type": "array", "items": ONE_IMAGE.schema, "minItems": 1, "maxItems": 1}
    return {
        "init_images": Kind(image, Body.listed), "mask": IMAGE, "denoising_strength": any_number(within("strength")),
        "resize_mode": number_of(_FITS), "image_cfg_scale": any_number(), "inpainting_fill": any_whole(),
        "inpainting_mask_invert": any_whole(), "inpaint_full_res": YES, "inpaint_full_res_padding": any_whole(),
        "mask_blur": any_whole(), "mask_blur_x": ANYTHING, "mask_blur_y": ANYTHING, "include_init_images": ANYTHING,
    }  # fmt: skip


def text_to_image(body: Body, service: Service, names: Names) -> dict[str, Any]:
    check(body, fields(service.settings.bounds, start=False))
    return {**_drawn(body, names), **_hires(body, names), **sdapi_controls.settings(body, service, names)}


def image_to_image(body: Body, service: Service, names: Names) -> dict[str, Any]:
    check(body, fields(service.settings.bounds, start=True))
    start = body.kept(_init_image(body), "init_images", service.upload)
    own = {"image": (start,), **_changed(body, service)}
    return {**_drawn(body, names), **own, **sdapi_controls.settings(body, service, names, start, str(own["fit"]))}


def _init_image(body: Body) -> bytes:
    images = body.listed("init_images")
    if len(images) != 1:
        raise body.refused("init_images", f"{len(images)} images; one is drawn from")
    content = Body({"init_images": images[0]}, body.where).image("init_images")
    if not content:
        raise body.refused("init_images", "the image is empty")
    return content


# --- what both have


def _drawn(body: Body, names: Names) -> dict[str, Any]:
    for name, neutral in _NEUTRAL.items():
        body.neutral(name, neutral)
    sampler = sampler_of(body)
    _check_noise(body, sampler)
    values: dict[str, Any] = {"words": (body.text("prompt") or "",), "preview_every": str(PREVIEW_EVERY)}
    for name, field in (("guidance", "cfg_scale"), ("steps", "steps"), ("width", "width"), ("height", "height")):
        number = body.number(field) if name == "guidance" else body.whole(field)
        if number is not None:
            values[name] = typed(number) if isinstance(number, float) else str(number)
    if (negative := body.text("negative_prompt")) is not None:
        values["negative_prompt"] = negative
    if sampler is not None:
        values["sampler"] = sampler.name
    return {**values, **_seeds(body), **_refined(body, names)}


def _seeds(body: Body) -> dict[str, Any]:
    """Consecutive ones, for as many images as there are in all batches."""
    counts = [1 if body.whole(name) is None else body.whole(name) or 0 for name in ("n_iter", "batch_size")]
    for name, count in zip(("n_iter", "batch_size"), counts, strict=True):
        if count < 1:
            raise body.refused(name, f"{count} is less than 1")
    seed = body.whole("seed")
    return {"num_images": str(counts[0] * counts[1])} | ({} if seed in (None, -1) else {"seeds": str(seed)})


def sampler_of(body: Body) -> Sampler | None:
    """Of A1111's pair; a name may have the schedule in it."""
    name, schedule = body.text("sampler_name") or body.text("sampler_index"), body.text("scheduler")
    if not name:
        if schedule and schedule.casefold() != "automatic":
            raise body.refused("scheduler", "it goes with a sampler_name, and there is none")
        return None
    found = samplers.from_a1111(name, schedule)
    if found is not None:
        return found
    try:
        known = samplers.find(name)
    except Usage as unknown:
        raise body.refused("sampler_name", unknown.message) from None
    raise body.refused("scheduler", f'"{show(schedule, 40)}" is not offered for {known.name}')


def _check_noise(body: Body, sampler: Sampler | None) -> None:
    """Fields that only samplers with noise of their own look at."""
    noisy = sampler is not None and sampler.stochastic
    if noisy:
        body.neutral("s_noise", (1,))
    eta = body.number("eta")
    fixed = (1,) if noisy else (0, 1) if sampler is None or sampler.name == _ETA else None
    if eta is not None and fixed is not None and eta not in fixed:
        raise body.refused("eta", f"{eta:g} is not supported")


def _refined(body: Body, names: Names) -> dict[str, Any]:
    name = body.text("refiner_checkpoint")
    if not name or name == "None":
        return {}
    share = body.number("refiner_switch_at")
    if share is None or not 0 < share < 1:
        raise body.refused("refiner_switch_at", "a share of the steps, between 0 and 1")
    return {"refiner": f"{names.refiner(name).setting}@{share:.6f}"}


# --- twice as large


def _hires(body: Body, names: Names) -> dict[str, Any]:
    if not body.yes("enable_hr"):
        return {}
    for name, neutral in _WITH_HIRES.items():
        body.neutral(name, neutral)
    for name, first in (("hr_prompt", "prompt"), ("hr_negative_prompt", "negative_prompt")):
        body.neutral(name, ("", body.text(first) or ""), "the second pass has the prompt of the first")
    for name, first in (("hr_sampler_name", "sampler_name"), ("hr_scheduler", "scheduler")):
        text = (body.text(name) or "").casefold()
        if text not in (*_SAME, (body.text(first) or "").casefold()):
            raise body.refused(name, "the second pass has the sampler of the first")
    values: dict[str, Any] = {"hires": _scale(body)}
    if steps := body.whole("hr_second_pass_steps"):
        values["hires_steps"] = str(steps)
    if (strength := body.number("denoising_strength")) is not None:
        values["hires_strength"] = typed(strength)
    if upscaler := body.text("hr_upscaler"):
        values["upscaler"] = _NO_MODEL.get(upscaler.casefold()) or _upscaler(body, "hr_upscaler", upscaler, names)
    return values


def _scale(body: Body) -> str:
    across, down = body.whole("hr_resize_x") or 0, body.whole("hr_resize_y") or 0
    width, height = body.whole("width") or 0, body.whole("height") or 0
    if (across and not width) or (down and not height):
        raise body.refused("hr_resize_x" if across else "hr_resize_y", "it needs width and height too")
    if across and down and abs(across * height - down * width) > max(width, height):
        raise body.refused("hr_resize_x", f"{across}×{down} has another shape than {width}×{height}")
    scale = across / width if across else down / height if down else body.number("hr_scale") or 2.0
    if scale <= 1:
        raise body.refused("hr_resize_x" if across or down else "hr_scale", f"{scale:g} is not more than 1")
    return typed(scale)


def _upscaler(body: Body, field: str, name: str, names: Names) -> str:
    try:
        return path_of(names.beside(name, "upscaler", "upscaler"))
    except ModelMissing as missing:
        raise body.refused(field, missing.message) from None


# --- from an image


def _changed(body: Body, service: Service) -> dict[str, Any]:
    """How the image is changed. These fields say what is asked for: left out they are as in A1111, unless the server
    was started with something else."""
    values: dict[str, Any] = {"fit": _choice(body, "resize_mode", _FITS, 0, service, "fit")}
    strength = body.number("denoising_strength")
    if strength is not None or "strength" not in service.settings.typed:
        values["strength"] = typed(0.75 if strength is None else strength)
    if (guidance := body.number("image_cfg_scale")) not in (None, 0):
        values["image_guidance"] = typed(guidance or 0)
    if not (mask := body.image("mask")):
        return values
    values["mask"] = _mask(body, mask, service)
    values["masked_content"] = _choice(body, "inpainting_fill", _CONTENTS, 0, service, "masked_content")
    blur = body.whole("mask_blur")
    for side in ("mask_blur_x", "mask_blur_y"):
        body.neutral(side, (4 if blur is None else blur,), "both sides have mask_blur")
    if blur is not None:
        values["mask_blur"] = str(blur)
    whole = body.yes("inpaint_full_res")
    if whole or (whole is None and "only_masked" not in service.settings.typed):
        values |= {"only_masked": True, "mask_padding": str(body.whole("inpaint_full_res_padding") or 0)}
    elif whole is False:
        values["only_masked"] = False
    return values


def _choice(body: Body, field: str, choices: Mapping[int, str], usual: int, service: Service, setting: str) -> str:
    number = body.whole(field)
    if number is None:
        return str(service.settings.typed.get(setting, choices[usual]))
    if number not in choices:
        raise body.refused(field, f"{number} is not one of {', '.join(map(str, choices))}")
    return choices[number]


def _mask(body: Body, content: bytes, service: Service) -> str:
    """White is repainted. Of an image with transparent parts it is what is opaque, as in A1111."""
    from PIL import ImageOps

    path = body.kept(content, "mask", service.upload)
    found, inverted = read.layers(read.look(path)), bool(body.whole("inpainting_mask_invert"))
    if found.alpha is None and not inverted:
        return path
    marks = found.alpha if found.alpha is not None else found.rgb.convert("L")
    return service.upload(saved(ImageOps.invert(marks) if inverted else marks, "PNG"))
