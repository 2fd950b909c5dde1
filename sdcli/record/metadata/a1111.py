"""The `parameters` text of AUTOMATIC1111's web UI, which every gallery and other UI reads: written and read.

What the format itself cannot carry, whoever writes it: line ends other than \\n, blanks around a prompt, and a line
of the prompt that begins with `Negative prompt:` (read as the negative). Our own chunk carries those.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sdcli.errors import Usage
from sdcli.plan.plan import Setup
from sdcli.record.metadata.own import RecordedModel
from sdcli.request import samplers
from sdcli.request.request import Job, Refiner, Repaint
from sdcli.request.tags import lora_tag

NEGATIVE = "Negative prompt:"
FEWEST_PAIRS = 3  # with fewer, every reader takes the last line for prompt
LONGEST_KEY = 100
_KEY = re.compile(r"\w[\w /-]+")
_WITH_SCHEDULE = re.compile(r"(.+?) (Karras|Exponential)")
_TEMPLATE = re.compile(r"\n(Template|Negative Template):")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Infotext:
    prompt: str
    negative_prompt: str = ""
    pairs: tuple[tuple[str, str], ...] = ()

    def get(self, key: str) -> str | None:
        return dict(self.pairs).get(key)


# --- the text itself


def write(info: Infotext) -> str:
    lines = [_tidy(info.prompt)]
    if negative := _tidy(info.negative_prompt):
        lines.append(f"{NEGATIVE} {negative}")
    lines.append(line(info.pairs))
    return "\n".join(lines).strip()


def _tidy(prompt: str) -> str:
    """What the format makes of a prompt, applied before writing so that reading it back changes nothing."""
    text = prompt.replace("\r\n", "\n").replace("\r", "\n").strip()
    return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)


def continued(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The text with more pairs in its last line; one without such a line stays as it is."""
    return f"{_tidy(text)}, {line(pairs)}" if read(text).pairs else text


def line(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(key if key == value else f"{key}: {_quote(value)}" for key, value in pairs)


def _quote(value: str) -> str:
    """As the web UI does; also where its reader would take the value itself for a quoted one."""
    if any(mark in value for mark in ",:\n\r") or value.startswith('"') or value != value.strip():
        return json.dumps(value, ensure_ascii=False)
    return value


def read(text: str) -> Infotext:
    """Never fails: whatever is not understood is part of the prompt."""
    text, templates = _without_templates(_tidy(text))
    *lines, last = text.split("\n")
    pairs = (*_pairs(last), *templates)
    if sum(key != value for key, value in pairs) < FEWEST_PAIRS:
        lines, pairs = [*lines, last], ()
    negative_from = next((n for n, line in enumerate(lines) if line.lstrip().startswith(NEGATIVE)), len(lines))
    prompt = "\n".join(lines[:negative_from]).strip()
    negative = "\n".join(lines[negative_from:]).strip().removeprefix(NEGATIVE).strip()
    return Infotext(prompt, negative, pairs)


def _without_templates(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Dynamic prompts writes its templates as lines of their own, after those of the web UI."""
    found = _TEMPLATE.search(text)
    last = text[: found.start()].rpartition("\n")[2] if found else ""
    if found is None or sum(key != value for key, value in _pairs(last)) < FEWEST_PAIRS:
        return text, ()
    pieces = _TEMPLATE.split(text[found.start() :])
    return text[: found.start()], tuple(zip(pieces[1::2], map(str.strip, pieces[2::2]), strict=True))


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Each `Key: value`, left to right, in one pass; a bare `Key` stands for `Key: Key`; the rest is passed over."""
    position = 0
    while position < len(line):
        comma = line.find(",", position)
        comma = len(line) if comma < 0 else comma
        colon = line.find(":", position, comma)
        key = line[position : colon if colon >= 0 else comma].strip()
        is_key = len(key) <= LONGEST_KEY and _KEY.fullmatch(key) is not None
        if colon < 0:
            if is_key:
                yield key, key
            position = comma + 1
            continue
        start = colon + 1
        while start < len(line) and line[start] == " ":
            start += 1
        quoted = _QUOTED.match(line, start) if is_key else None
        if quoted is not None and line[quoted.end() :].lstrip()[:1] in ("", ","):
            yield key, _unquote(quoted[0])
            comma = line.find(",", quoted.end())
            position = len(line) if comma < 0 else comma + 1
            continue
        if is_key:
            yield key, line[colon + 1 : comma].strip()
        position = comma + 1


def _unquote(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text


# --- from our settings to this text, and back


def infotext(job: Job, setup: Setup, model: RecordedModel, version: str) -> Infotext:
    sampler, schedule = _pair(job.sampler)
    loras = [adapter for adapter in setup.adapters if adapter.kind == "lora"]
    vae = next((adapter for adapter in setup.adapters if adapter.kind == "vae"), None)
    pairs: list[tuple[str, object]] = [
        ("Steps", job.steps),
        ("Sampler", sampler),
        ("Schedule type", schedule),
        ("CFG scale", job.guidance),
        ("Image CFG scale", job.start.guidance if job.start else None),
        ("Seed", job.seed),
        ("Size", f"{job.width}x{job.height}"),
        # before the model's: some readers split within quotes, and take the last "Model" for the image's
        *_controls(job, setup),
        *_references(job, setup),
        ("Model hash", model.hash),
        ("Model", model.name),
        ("VAE hash", vae.sha256[:10] if vae else None),
        ("VAE", vae.name if vae else None),
        ("Denoising strength", None if job.start and job.start.guidance else _strength(job)),
        ("Clip skip", job.clip_skip if job.clip_skip > 1 else None),
        ("RNG", "NV" if job.rng == "nv" else "CPU"),  # the web UI draws its noise on the GPU by default
        ("Emphasis", None if job.emphasis == "a1111" else job.emphasis.capitalize()),
        *_repaint(job.start.repaint if job.start else None),
        *_second(job),
        *_refined(job, setup),
        ("Lora hashes", _hashes((lora.name, lora.tensors_sha256 or lora.sha256) for lora in loras)),
        ("TI hashes", _hashes((one.name, one.sha256) for one in setup.adapters if one.kind == "embedding")),
        ("Template", job.template),
        ("Negative Template", job.negative_template),
        ("Version", f"sdcli {version}".strip()),
    ]
    texts = tuple((key, _tidy(str(value))) for key, value in pairs if value is not None)
    # in A1111 the prompt names the LoRAs, and their weights are nowhere else
    tags = [lora_tag(lora.name, lora.scale) for lora in loras]
    return Infotext(_tidy(" ".join(filter(None, (job.prompt, *tags)))), _tidy(job.negative_prompt), texts)


def _controls(job: Job, setup: Setup) -> Iterator[tuple[str, object]]:
    """One key for each, as the web UI's extension writes them."""
    mode = "ControlNet is more important" if job.guess_mode else "Balanced"
    hashes = {one.name: one.sha256[:8] for one in setup.adapters if one.kind in ("controlnet", "t2i-adapter")}
    for number, control in enumerate(job.controls):
        told = {
            "Module": control.made, "Model": f"{control.net} [{hashes.get(control.net, '')}]",
            "Weight": control.weight, "Resize Mode": _RESIZES[control.fit], "Guidance Start": control.start,
            "Guidance End": control.end, "Control Mode": mode,
        }  # fmt: skip
        yield f"ControlNet {number}", ", ".join(f"{key}: {value}" for key, value in told.items())


def _references(job: Job, setup: Setup) -> Iterator[tuple[str, object]]:
    """To the web UI's extension an IP-Adapter is a unit too, one for each image."""
    adapter = next((one for one in setup.adapters if one.kind == "ip-adapter"), None)
    for number, reference in enumerate(job.references, len(job.controls)):
        told = {
            "Module": "ip-adapter-auto", "Model": f"{adapter.name} [{adapter.sha256[:8]}]" if adapter else "None",
            "Weight": reference.weight, "Resize Mode": _RESIZES["crop"], "Guidance Start": 0.0, "Guidance End": 1.0,
            "Control Mode": "Balanced",
        }  # fmt: skip
        yield f"ControlNet {number}", ", ".join(f"{key}: {value}" for key, value in told.items())


_RESIZES = {"crop": "Crop and Resize", "pad": "Resize and Fill", "stretch": "Just Resize"}


def _strength(job: Job) -> str | None:
    """Of the second pass where there is one: the web UI has one key for both."""
    changed = job.second or job.start
    return f"{changed.strength:g}" if changed else None


def _second(job: Job) -> Iterator[tuple[str, object]]:
    if job.second is not None:
        yield "Hires upscale", f"{job.second.scale:g}"
        yield "Hires steps", job.second.steps
        yield "Hires upscaler", job.second.upscaler if job.second.by_model else job.second.upscaler.capitalize()


def _refined(job: Job, setup: Setup) -> Iterator[tuple[str, object]]:
    if job.refined is not None:
        hashes = (one.sha256[:10] for one in setup.adapters if one.kind == "refiner")
        yield "Refiner", f"{job.refined.model} [{next(hashes, '')}]"
        yield "Refiner switch at", f"{job.refined.share:g}"


def _repaint(repaint: Repaint | None) -> Iterator[tuple[str, object]]:
    """The web UI leaves out what is as it has it by default."""
    if repaint is None:
        return
    yield "Mask blur", repaint.blur
    if repaint.padding is not None:
        yield "Inpaint area", "Only masked"
        yield "Masked area padding", repaint.padding
    if repaint.content != "original":
        yield "Masked content", _CONTENTS.get(repaint.content, repaint.content)


_CONTENTS = {"noise": "latent noise", "nothing": "latent nothing"}


def _hashes(named: Iterable[tuple[str, str]]) -> str | None:
    return ", ".join(f"{name}: {hash[:12]}" for name, hash in named) or None


def values(info: Infotext) -> tuple[dict[str, Any], dict[str, str]]:
    """Request fields, and the pairs that are not. Only plain values: no path, no address, no flag."""
    rest = dict(info.pairs)
    fields: dict[str, Any] = {"prompts": (info.prompt,), "negative_prompt": info.negative_prompt}
    for key, name in (("Steps", "steps"), ("Clip skip", "clip_skip")):
        _take(rest, key, fields, name, _whole(rest.get(key)))
    seed = _whole(rest.get("Seed"))
    _take(rest, "Seed", fields, "seeds", None if seed is None or seed < 0 else (seed,))
    _take(rest, "CFG scale", fields, "guidance", _number(rest.get("CFG scale")))
    _take(rest, "Image CFG scale", fields, "image_guidance", _number(rest.get("Image CFG scale")))
    _take_strength(rest, fields)
    _take_repaint(rest, fields)
    _take_refiner(rest, fields)
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", rest.get("Size", ""), re.ASCII)
    if size:
        fields["width"], fields["height"] = int(size[1]), int(size[2])
        del rest["Size"]
    _take_sampler(rest, fields)
    emphasis = {"None": "none", "Comfy": "comfy", "Original": "a1111"}.get(rest.get("Emphasis", ""))
    _take(rest, "Emphasis", fields, "emphasis", emphasis)
    _take_rng(rest, fields)
    _take(rest, "Model", fields, "model", plain_name(rest.get("Model", "")))
    return fields, rest


def _take_strength(rest: dict[str, str], fields: dict[str, Any]) -> None:
    """Of a second pass, if it is one that can be drawn here, else of the image that was started from."""
    strength = _number(rest.get("Denoising strength"))
    strength = strength if strength and strength <= 1 else None
    upscaler = _upscaler(rest)
    scale, steps = _number(rest.get("Hires upscale")), _whole(rest.get("Hires steps"))
    if upscaler is not None and scale is not None and 1 <= scale <= 8:
        _take(rest, "Hires upscaler", fields, "upscaler", upscaler)
        _take(rest, "Hires upscale", fields, "hires", scale)
        _take(rest, "Hires steps", fields, "hires_steps", steps if steps and steps <= 1000 else None)
        _take(rest, "Denoising strength", fields, "hires_strength", strength)
    elif not any(key.startswith("Hires") for key in rest):
        _take(rest, "Denoising strength", fields, "strength", strength)


def _upscaler(rest: dict[str, str]) -> str | None:
    """A model by its name only where sdcli wrote it: the web UI has names of its own for those it comes with."""
    named = rest.get("Hires upscaler", "")
    plain = {"Latent": "latent", "Lanczos": "lanczos", "None": "lanczos"}.get(named)
    return plain or (plain_name(named) if rest.get("Version", "").startswith("sdcli") else None)


def _take_repaint(rest: dict[str, str], fields: dict[str, Any]) -> None:
    _take(rest, "Mask blur", fields, "mask_blur", _whole(rest.get("Mask blur")))
    _take(rest, "Inpaint area", fields, "only_masked", True if rest.get("Inpaint area") == "Only masked" else None)
    _take(rest, "Masked area padding", fields, "mask_padding", _whole(rest.get("Masked area padding")))
    ours = {theirs: own for own, theirs in _CONTENTS.items()} | {"fill": "fill", "original": "original"}
    _take(rest, "Masked content", fields, "masked_content", ours.get(rest.get("Masked content", "")))


def _take_refiner(rest: dict[str, str], fields: dict[str, Any]) -> None:
    named = re.fullmatch(r"(.{1,120}?)(?: \[[0-9a-f]*\])?", rest.get("Refiner", ""))
    name, share = plain_name(named[1]) if named else None, _number(rest.get("Refiner switch at"))
    if name is not None and share is not None and 0 < share < 1:
        fields["refiner"] = Refiner(model=name, share=share)
        del rest["Refiner"], rest["Refiner switch at"]


def _take_rng(rest: dict[str, str], fields: dict[str, Any]) -> None:
    """The web UI leaves out its default, a GPU's; so does Forge, which writes its own version before that one's."""
    if "RNG" in rest:
        _take(rest, "RNG", fields, "rng", {"GPU": "nv", "NV": "nv", "CPU": "cpu"}.get(rest["RNG"]))
    elif re.match(r"(f[\d.]{1,20})?v1\.\d", rest.get("Version", ""), re.ASCII):
        fields["rng"] = "nv"


def _take(rest: dict[str, str], key: str, fields: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        fields[name] = value
        del rest[key]


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,19}", text, re.ASCII) else None


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\d{1,6}(\.\d{0,20})?", text, re.ASCII):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def plain_name(text: str) -> str | None:
    """A model's name from a foreign file: never a path, an address or a file."""
    plain = re.fullmatch(r"[\w][\w .()+-]{0,119}", text) is not None and ".." not in text
    weights = text.lower().endswith((".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".gguf"))
    return text if plain and not weights else None


def _pair(name: str) -> tuple[str, str | None]:
    """The sampler and the schedule type apart, as the web UI writes them since 1.9."""
    try:
        return samplers.find(name).a1111
    except Usage:
        return name, None  # a name of a later sdcli, in a plan from another machine


def _take_sampler(rest: dict[str, str], fields: dict[str, Any]) -> None:
    """Our name of the pair; without one, the sampler alone, and the schedule stays in `rest`."""
    name, schedule = rest.get("Sampler", ""), rest.get("Schedule type")
    sampler = samplers.from_a1111(name, schedule)
    if sampler is not None:
        rest.pop("Schedule type", None)
    else:
        older = _WITH_SCHEDULE.fullmatch(name)  # before 1.9 one name held both
        name, schedule = (older[1], older[2]) if older else (name, schedule)
        sampler = samplers.from_a1111(name)
        if sampler is not None and schedule:
            rest["Schedule type"] = schedule
    if sampler is not None:
        fields["sampler"] = sampler.name
        del rest["Sampler"]
