"""What the readers of other programs' settings share: only plain values pass, all else is kept to be shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from sdcli import reading
from sdcli.errors import BadFile
from sdcli.record.metadata import a1111
from sdcli.request import samplers
from sdcli.request.request import LARGEST_SEED
from sdcli.request.tags import lora_weight

LONGEST_SHOWN = 1000
MOST_UNKNOWN = 200
LONGEST_PROMPT = 100_000
MOST_LORAS = 32
_WEIGHTS = re.compile(r"\.(safetensors|ckpt|pt|pth|bin|sft|gguf)$", re.IGNORECASE)


def parse(text: str, where: str, hint: str) -> dict[str, Any]:
    """One JSON object; NaN in it, which Python writes, is None."""
    try:
        return reading.parse_object(text, nan=True)
    except reading.NotJson as error:
        raise BadFile(f"{where} {error}", hint=hint) from None


class Taken:
    """The request fields taken so far, and what was left."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.unknown: dict[str, str] = {}

    def take(self, name: str, value: Any, key: str, raw: Any) -> None:
        """`value` for the field, unless it is None: then `raw` is shown under its own key."""
        if value is None:
            self.leave(key, raw)
        else:
            self.values[name] = value

    def leave(self, key: str, raw: Any) -> None:
        if raw not in (None, "", [], {}) and len(self.unknown) < MOST_UNKNOWN:
            text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
            self.unknown[key[: a1111.LONGEST_KEY]] = text[:LONGEST_SHOWN]

    def leave_all(self, rest: Mapping[str, Any]) -> None:
        for key, raw in rest.items():
            self.leave(key, raw)

    def prompts(self, prompt: Any, negative: Any) -> None:
        self.take("prompts", None if (text := prose(prompt)) is None else (text,), "Prompt", prompt)
        self.take("negative_prompt", prose(negative), "Negative prompt", negative)

    def size(self, width: Any, height: Any) -> None:
        sides = whole(width, 1, 999_999), whole(height, 1, 999_999)
        if None in sides:
            self.leave("Size", None if width is None and height is None else f"{width}x{height}")
        else:
            self.values["width"], self.values["height"] = sides

    def steps(self, steps: Any) -> None:
        self.take("steps", whole(steps, 1, 10_000), "Steps", steps)

    def guidance(self, scale: Any) -> None:
        self.take("guidance", number(scale, 0, 100), "CFG scale", scale)

    def seed(self, seed: Any) -> None:
        self.take("seeds", None if (number := whole(seed, 0, LARGEST_SEED)) is None else (number,), "Seed", seed)

    def sampler(self, name: Any, schedule: Any) -> None:
        """Our name of the pair; without one, that of the sampler alone, and the schedule is left."""
        found, rest = pair(name, schedule)
        self.take("sampler", found, "Sampler", name)
        self.leave("Schedule type", rest)

    def model(self, name: Any) -> None:
        self.take("model", plain_name(name), "Model", name)

    def lora(self, name: Any, weight: Any) -> None:
        """By name, never by path: the reader finds where it is on this machine."""
        plain, scale, so_far = plain_name(name), number(weight, -10, 10), self.values.get("lora", ())
        if plain is None or scale is None or len(so_far) >= MOST_LORAS:
            self.leave(f"LoRA {len(so_far) + 1}", f"{name}:{weight}")
        else:
            self.values["lora"] = (*so_far, f"{plain}:{lora_weight(scale)}")


def whole(value: Any, least: int, most: int) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and least <= value <= most else None


def number(value: Any, least: float, most: float) -> float | None:
    fits = type(value) in (int, float) and least <= value <= most and math.isfinite(value)
    return float(value) if fits else None


def prose(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > LONGEST_PROMPT:
        return None
    return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in value)


def plain_name(value: Any) -> str | None:
    """A model's name, where the other program has its file."""
    if not isinstance(value, str) or len(value) > 500:
        return None
    return a1111.plain_name(_WEIGHTS.sub("", re.split(r"[\\/]", value)[-1]))


def pair(name: Any, schedule: Any) -> tuple[str | None, Any]:
    if not isinstance(name, str):
        return None, schedule
    plain = schedule in ("discrete", "ddim_uniform") and (schedule == "discrete" or name == "ddim")
    kind = "" if plain or not isinstance(schedule, str) else schedule
    found = samplers.from_a1111(name, kind)
    if found is not None:
        return found.name, None
    alone = samplers.from_a1111(name)
    return alone.name if alone else None, schedule
