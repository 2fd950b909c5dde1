"""InvokeAI's settings: `invokeai_metadata` since version 3, `sd-metadata` before."""

from __future__ import annotations

import re
from typing import Any

from sdcli.record.metadata.foreign import Taken, parse, whole

_NEGATIVE = re.compile(r"(?<!\\)\[([^\[\]]*)\]")  # in version 2, within the prompt


def values(text: str, where: str, hint: str) -> tuple[dict[str, Any], dict[str, str]]:
    raw, taken = parse(text, where, hint), Taken()
    taken.prompts(raw.pop("positive_prompt", None), raw.pop("negative_prompt", None) or "")
    _common(raw, taken)
    taken.sampler(*_apart(raw.pop("scheduler", None)))
    skipped = raw.pop("clip_skip", None)  # counted from nothing skipped
    taken.take("clip_skip", None if (count := whole(skipped, 0, 11)) is None else count + 1, "Clip skip", skipped)
    device = raw.pop("rand_device", None)
    taken.take("rng", _one_of(device, {"cpu": "cpu", "cuda": "nv"}), "RNG", device)
    taken.model(_name(raw.pop("model", None)))
    for one in _list(raw.pop("loras", None)):
        taken.lora(_name(one.get("model") or one.get("lora")), one.get("weight"))
    taken.leave_all(raw)
    return taken.values, taken.unknown


def values_of_2(text: str, where: str, hint: str) -> tuple[dict[str, Any], dict[str, str]]:
    raw, taken = parse(text, where, hint), Taken()
    image = raw.pop("image", None)
    image = dict(image) if isinstance(image, dict) else {}
    prompt = image.pop("prompt", None)
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = prompt[0].get("prompt")
    negative = ""
    if isinstance(prompt, str):
        negative = " ".join(_NEGATIVE.findall(prompt))
        prompt = " ".join(_NEGATIVE.sub(" ", prompt).split()) if negative else prompt
    taken.prompts(prompt, negative)
    _common(image, taken)
    taken.sampler(image.pop("sampler", None), None)
    taken.model(raw.pop("model_weights", None))
    taken.leave_all({**raw, **image})
    return taken.values, taken.unknown


def _common(raw: dict[str, Any], taken: Taken) -> None:
    taken.seed(raw.pop("seed", None))
    taken.steps(raw.pop("steps", None))
    taken.guidance(raw.pop("cfg_scale", None))
    taken.size(raw.pop("width", None), raw.pop("height", None))


def _apart(scheduler: Any) -> tuple[Any, Any]:
    """`dpmpp_2m_k` is DPM++ 2M with Karras' schedule."""
    if isinstance(scheduler, str) and scheduler.endswith("_k"):
        return scheduler[:-2], "karras"
    return scheduler, None


def _name(model: Any) -> Any:
    """Of a model as version 4 or version 3 writes it."""
    return model.get("name") or model.get("model_name") if isinstance(model, dict) else model


def _list(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _one_of(value: Any, table: dict[str, str]) -> str | None:
    return table.get(value) if isinstance(value, str) else None
