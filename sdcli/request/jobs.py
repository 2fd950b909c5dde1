"""From settings to jobs: seeds, sizes, ranges, and one job per image."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from itertools import islice
from typing import Any

from sdcli.errors import Usage
from sdcli.images.read import InputImage
from sdcli.request import samplers
from sdcli.request.options import OPTIONS, Option, flag_of
from sdcli.request.request import (
    LARGEST_SEED,
    PER_IMAGE,
    Job,
    Refined,
    Refiner,
    Repaint,
    Request,
    SecondPass,
    Shard,
    Sides,
    Start,
    steps_taken,
)
from sdcli.request.samplers import Sampler
from sdcli.sizes import parse_size
from sdcli.terminal import quoted, show

MOST_JOBS = 10_000
MOST_SHARDS = 10_000
SIDES = (64, 8192)
LONGEST_PROMPT = 20_000  # characters; some hundred chunks, beyond which attention to the text outweighs the image


# --- text into values


def parse_seeds(text: str) -> tuple[int, ...]:
    """`7`, `1,5,9`, `1..8` (both ends), or several of these with commas; none for -1, which is a random one."""
    if text.strip() == "-1":
        return ()
    seeds: list[int] = []
    for part in text.split(","):
        seeds.extend(_seed_range(part.strip(), text))
        if len(seeds) > MOST_JOBS:
            raise Usage(f"--seed: more than {MOST_JOBS} seeds", hint="--seed 1..8")
    return tuple(seeds)


def _seed_range(part: str, text: str) -> Iterable[int]:
    match = re.fullmatch(r"(\d{1,40})(?:\.\.(\d{1,40}))?", part, re.ASCII)
    if match is None and part != "-1" and re.fullmatch(r"[+-]\d{1,12}", part, re.ASCII):
        raise Usage(
            f"--seed {part} counts from an image's own seed, which only sdcli again does",
            hint=f"sdcli again IMAGE --seed {part}",
        )
    if match is None:
        raise Usage(f'--seed: "{show(text, 60)}" is not a seed, list or range', hint=_seed_meant(text.strip()))
    first, last = int(match[1]), int(match[2] or match[1])
    for seed in (first, last):
        if seed > LARGEST_SEED:
            raise Usage(
                f"--seed {seed} is larger than {LARGEST_SEED} (2^32 - 1)",
                hint=f"--seed {seed % (LARGEST_SEED + 1)}",
            )
    if last < first:
        raise Usage(f"--seed {first}..{last} runs backwards", hint=f"--seed {last}..{first}")
    if last - first >= MOST_JOBS:
        raise Usage(f"--seed: more than {MOST_JOBS} seeds", hint="--seed 1..8")
    return range(first, last + 1)


def _seed_meant(text: str) -> str:
    """Other programs write a range as 1-3."""
    range_ = re.fullmatch(r"(\d{1,10})\s*(?:-|:|\.\.\.|to)\s*(\d{1,10})", text, re.ASCII)
    if range_:
        return f"--seed {range_[1]}..{range_[2]}"
    if text == "random":
        return "the same command without --seed   (a random seed is used and printed)"
    return "--seed 1,5,9   (or 1..8, or without --seed for a random one)"


def parse_outpaint(text: str) -> Sides:
    """`left:128,top:64`, or one number for all four sides."""
    if re.fullmatch(r"\s*\d{1,5}\s*", text, re.ASCII):
        return Sides(**dict.fromkeys(_SIDES, int(text)))
    added: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(left|top|right|bottom)\s*[:=]\s*(\d{1,5})\s*", part, re.ASCII | re.IGNORECASE)
        if match is None:
            raise Usage(f'--outpaint: "{show(part, 60)}" is not SIDE:PIXELS', hint="--outpaint left:128,top:64")
        added[match[1].lower()] = int(match[2])
    return Sides(**added)


_SIDES = tuple(side.name for side in fields(Sides))


def parse_shard(text: str) -> Shard:
    """`2/8`: the second of eight."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    if match is None:
        raise Usage(f'--shard: "{show(text, 60)}" is not I/N', hint="--shard 1/8")
    number, of = int(match[1]), int(match[2])
    if not 1 <= of <= MOST_SHARDS:
        raise Usage(f"--shard: {of} is not a number of shards from 1 to {MOST_SHARDS}", hint="--shard 1/8")
    if not 1 <= number <= of:
        raise Usage(
            f"--shard {number}/{of}: shards count from 1 to {of}", hint=f"--shard {min(max(number, 1), of)}/{of}"
        )
    return Shard(number=number, of=of)


def parse_refiner(text: str) -> Refiner | None:
    """`refiner.safetensors@0.8`: a model, and the share of the steps before it begins; `none` is no refiner."""
    if text.strip().casefold() == "none":
        return None
    found = re.fullmatch(r"(.+?)(?:@(\d{0,3}(?:\.\d{1,6})?))?", text.strip(), re.ASCII | re.DOTALL)
    assert found is not None
    share = float(found[2] or Refiner.share)
    if not 0 < share < 1:
        raise Usage(
            f"--refiner: {share:g} is not a share of the steps, between 0 and 1",
            hint=f"--refiner {quoted(show(found[1], 300))}@{Refiner.share:g}",
        )
    return Refiner(model=found[1], share=share)


def parse_sides(text: str, flag: str = "--size") -> tuple[int, int]:
    """`1024x768` as (width, height); `512` is a square."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:[x×*]\s*(\d{1,9})\s*)?", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise Usage(f'{flag}: "{show(text, 60)}" is not WIDTHxHEIGHT', hint=f"{flag} 1024x768")
    return int(match[1]), int(match[2] or match[1])


def parse_memory(text: str, flag: str = "--max-vram") -> int:
    """A number with MiB, GiB, MB, GB, G or M; without one, GiB. In bytes."""
    try:
        return parse_size(text)
    except ValueError:
        raise Usage(
            f'{flag}: "{show(text, 60)}" is not a size; write 6, 6GiB, 6GB or 6000MiB',
            hint=f"{flag} 6GiB",
        ) from None


# --- limits of a request


def check(request: Request) -> None:
    """Check every range; an error names the flag and a value that works."""
    images = len(request.prompts) * max(1, len(request.image)) * max(1, len(request.seeds))
    check_prompts(request.prompts, images=images)
    _check_text(request.negative_prompt)
    for option in OPTIONS:
        value = getattr(request, option.field, None)
        if option.choices and value is not None:
            _check_choice(option, value)
        if option.within is not None and value is not None:
            _within(option, value)
    for seed in request.seeds:
        _between("--seed", seed, 0, LARGEST_SEED)
    _between("--num-images", request.num_images, 1, MOST_JOBS)
    _check_sides(request)
    _check_controls(request)
    _check_references(request)
    if request.edits:
        _check_edit(request)
    if request.image:
        _check_strength(request)
    else:
        _check_no_start(request)


def check_prompts(prompts: tuple[str, ...], images: int) -> None:
    """Prompts that so many images are to be drawn of."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise Usage("the prompt is empty", hint='"a cat"', field="prompts")
    for text in prompts:
        _check_text(text)
    if images > MOST_JOBS:
        raise Usage(f"more than {MOST_JOBS} images in one run", hint="--seed 1..8 --num-images 8")


def _check_controls(request: Request) -> None:
    if not request.control and (request.control_from != "none" or request.guess_mode):
        flag = flag_of("guess_mode" if request.guess_mode else "control_from")
        raise Usage(
            f"{flag} needs a ControlNet and an image", hint="the same command with --control canny.safetensors=room.png"
        )


def _check_references(request: Request) -> None:
    if request.reference and request.reference_model is None:
        raise Usage(
            "--reference needs an IP-Adapter",
            hint="the same command with --reference-model ip-adapter_sd15.safetensors",
        )
    if request.reference_mask and not request.reference:
        raise Usage("--reference-mask needs a reference", hint="the same command with --reference photo.png")
    if len(request.reference_mask) > len(request.reference):
        raise Usage(
            f"{len(request.reference_mask)} masks for {len(request.reference)} --reference",
            hint="the same command without --reference-mask",
        )


def _check_no_start(request: Request) -> None:
    """What only changes an image says nothing without one."""
    for name in ("mask", "only_masked", "outpaint"):
        if getattr(request, name):
            raise Usage(f"{flag_of(name)} needs an image to repaint", hint="the same command with --image photo.png")


def _check_edit(request: Request) -> None:
    """A model that edits sees the whole image in every step, and starts from noise all the same."""
    if not request.image:
        raise Usage(
            "this model changes an image as the prompt says, and there is none",
            hint="the same command with --image photo.png",
        )
    for name in ("strength", "mask", "outpaint", "only_masked", "control", "reference"):
        if getattr(request, name) not in (None, False, ()):
            flag = flag_of(name)
            raise Usage(
                f"{flag} is not for a model that edits: what it changes, the prompt says",
                hint=f"the same command without {flag}",
            )


def _check_strength(request: Request) -> None:
    strength = _strength(request)
    if steps_taken(request.steps, strength) < 1:
        smallest = next(
            share for digits in (2, 3, 4) if steps_taken(request.steps, share := _above(1 / request.steps, digits))
        )
        raise Usage(
            f"--strength {strength:g} of {request.steps} steps leaves none; the smallest is {smallest:g}",
            hint=f"--strength {smallest:g}",
        )


def _above(value: float, digits: int) -> float:
    return math.ceil(value * 10.0**digits) / 10.0**digits


def _check_text(text: str) -> None:
    hint = '"a cat"'
    if len(text) > LONGEST_PROMPT:
        raise Usage(f"a prompt of {len(text)} characters is longer than {LONGEST_PROMPT}", hint=hint)
    if "\0" in text:
        raise Usage(f'the prompt "{show(text, 60)}" contains a NUL character', hint=hint)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Usage(f'the prompt "{show(text, 60)}" is not valid Unicode text', hint=hint) from None


def _check_choice(option: Option, value: str) -> None:
    if value not in option.choices:
        flag = flag_of(option.field)
        raise Usage(
            f'{flag}: "{show(value, 60)}" is not one of {", ".join(option.choices)}',
            hint=f"{flag} {option.choices[0]}",
        )


def _within(option: Option, value: float) -> None:
    assert option.within is not None
    lowest, highest = option.within
    if not lowest <= value <= highest:  # the flag's name is looked up only now: lists have a million lines
        _between(flag_of(option.field), value, lowest, highest)


def _between(flag: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:  # false for NaN too
        near = min(max(value, lowest), highest) if math.isfinite(value) else highest
        raise Usage(f"{flag} {value} is not between {lowest} and {highest}", hint=f"{flag} {near}")


def _check_sides(request: Request) -> None:
    """The hint corrects both if both are wrong."""
    wrong = []
    for flag, value in (("--width", request.width), ("--height", request.height)):
        try:
            check_side(flag, value, request.multiple)
        except Usage as error:
            wrong.append(error)
    if wrong:
        raise Usage(wrong[0].message, hint=" ".join(error.hint for error in wrong))


def check_side(flag: str, value: int, multiple: int = 8) -> None:
    lowest, highest = SIDES
    if not lowest <= value <= highest:
        _between(flag, value, lowest, highest)
    if value % multiple:
        below, above = value // multiple * multiple, value // multiple * multiple + multiple
        raise Usage(
            f"{flag} {value} is not a multiple of {multiple}; the nearest are {below} and {above}",
            hint=f"{flag} {above}",
        )


# --- seeds and jobs


def resolve_seeds(
    seeds: tuple[int, ...], num_images: int | None, draw: Callable[[int], int] | None = None
) -> tuple[tuple[int, ...], bool]:
    """The seeds of every prompt, and whether they are random. One seed counts up over num_images."""
    if len(seeds) > 1:
        if num_images not in (None, len(seeds)):
            raise Usage(
                f"--num-images {num_images} conflicts with {len(seeds)} seeds",
                hint=f"--seed {seeds[0]} --num-images {num_images}",
            )
        return seeds, False
    count = 1 if num_images is None else num_images
    _between("--num-images", count, 1, MOST_JOBS)
    first = seeds[0] if seeds else (draw or _random)(LARGEST_SEED + 2 - count)
    if first + count - 1 > LARGEST_SEED:
        raise Usage(f"--seed {first} leaves fewer than {count} seeds below 2^32", hint="--seed 1")
    return tuple(range(first, first + count)), not seeds


def _random(below: int) -> int:
    """Even to one part in 2^32, and at once: `secrets` would load OpenSSL."""
    return int.from_bytes(os.urandom(8)) % below


def make_jobs(
    request: Request, prompts: tuple[str, ...] | None = None, seeds: tuple[int, ...] | None = None, first: int = 0
) -> tuple[Job, ...]:
    """Prompts outer, then the images to start from, seeds inner; the request's, unless others are given. Indices count
    from `first`."""
    listed = request.prompts if prompts is None else prompts
    every = itertools.product(listed, request.image or (None,), request.seeds if seeds is None else seeds)
    return tuple(
        make_job(request, index, prompt, seed, image) for index, (prompt, image, seed) in enumerate(every, first)
    )


def make_job(request: Request, index: int, prompt: str, seed: int, image: InputImage | None = None) -> Job:
    sampler = samplers.find(request.sampler)
    samplers.check_steps(sampler, request.steps)
    start = None if image is None else _start(request, image)
    taken = request.steps if start is None else steps_taken(request.steps, start.strength)
    refined = _refined(request, sampler, taken)
    first = taken - (refined.steps if refined is not None else 0)
    own: dict[str, Any] = {"sampler": sampler.name, **_sides(request, image), **_chosen(request, prompt, seed)}
    if image is not None and request.outpaint is not None:
        _check_room(own.get("width", request.width), own.get("height", request.height), request.outpaint)
    return Job(
        index=index, seed=seed, unet_calls=sampler.unet_calls(first, followed=refined is not None),
        start=start, second=_second(request, sampler, own), refined=refined,
        controls=tuple(replace(control, made=request.control_from, fit=request.fit) for control in request.control),
        references=tuple(
            replace(reference, mask=mask, layers=request.reference_layers, fit=request.fit)
            for reference, mask in itertools.zip_longest(request.reference, request.reference_mask)
        ),
        **{name: getattr(request, name) for name in PER_IMAGE} | own,
    )  # fmt: skip


def _chosen(request: Request, prompt: str, seed: int) -> dict[str, str]:
    """The texts of one image: what its seed chooses from them, and the templates where it chose."""
    texts = {"prompt": prompt, "negative_prompt": request.negative_prompt}
    if request.wildcards == "off" or not any("{" in text or "__" in text for text in texts.values()):
        return texts
    from sdcli.request import wildcards  # few prompts have any

    folder, made = wildcards.folder_of(request.wildcards), dict(texts)
    for (name, text), template in zip(texts.items(), ("template", "negative_template"), strict=True):
        resolved = wildcards.resolve(text, folder, seed, of=name, longest=LONGEST_PROMPT)
        _check_text(resolved.text)
        made |= {name: resolved.text} | ({template: text} if resolved.chosen else {})
    return made


# How much a second pass changes by default: enlarged latents are blurred, an enlarged image is not.
_OF_LATENTS, _OF_AN_IMAGE = 0.7, 0.4


def _second(request: Request, sampler: Sampler, own: Mapping[str, Any]) -> SecondPass | None:
    if request.hires is None or request.hires <= 1:
        return None
    if request.image:
        raise Usage(
            "--hires draws twice from a prompt, --image starts from an image", hint="the same command without --hires"
        )
    sides = [own.get(name, getattr(request, name)) for name in ("width", "height")]
    width, height = (_nearest(side * request.hires, request.multiple) for side in sides)
    if max(width, height) > SIDES[1]:
        most = int(SIDES[1] / max(sides) * 10) / 10
        raise Usage(
            f"--hires {request.hires:g} makes {width}×{height}; sides are at most {SIDES[1]}", hint=f"--hires {most:g}"
        )
    steps = request.hires_steps or request.steps
    usual = _OF_LATENTS if request.upscaler == "latent" else _OF_AN_IMAGE
    strength = usual if request.hires_strength is None else request.hires_strength
    if strength <= 0:
        raise Usage("--hires-strength 0 leaves nothing to draw", hint="--hires-strength 0.4")
    second = SecondPass(
        scale=request.hires, width=width, height=height, steps=steps, strength=strength, upscaler=request.upscaler,
        unet_calls=sampler.unet_calls(steps),
    )  # fmt: skip
    if second.steps_in_all > sampler.most_steps:
        raise Usage(
            f"--hires-strength {strength:g} makes {steps} steps the last of {second.steps_in_all}, and {sampler.name} "
            f"takes at most {sampler.most_steps}",
            hint="--hires-strength 0.5",
        )
    return second


def _refined(request: Request, sampler: Sampler, taken: int) -> Refined | None:
    """At whole steps, and at least one for each of the two. diffusers splits where
    a share of the noise is left, also within a step."""
    if request.refiner is None:
        return None
    beside = {name: getattr(request, name) for name in ("mask", "outpaint", "control")}
    beside["hires"] = (request.hires or 1) > 1
    other = next((name for name, asked in beside.items() if asked), None)
    if other is not None:
        raise Usage(
            f"--refiner takes the last steps of a whole image, and does not go with {flag_of(other)}",
            hint="the same command with --refiner none",
        )
    if taken < 2:
        share = _strength(request) if request.image else 1.0
        enough = next(steps for steps in itertools.count(2) if steps_taken(steps, share) >= 2)
        raise Usage("--refiner shares two steps or more, and there is 1", hint=f"--steps {enough}")
    base = min(max(round(taken * request.refiner.share), 1), taken - 1)
    return Refined(
        model=request.refiner.model, share=request.refiner.share, steps=taken - base,
        unet_calls=sampler.unet_calls(taken - base),
    )  # fmt: skip


def _strength(request: Request) -> float:
    """The more is new, the more steps: by default."""
    if request.edits:
        return 1.0
    if request.strength is not None:
        return request.strength
    return 1.0 if request.outpaint else 0.8 if request.mask else 0.6


def _start(request: Request, image: InputImage) -> Start:
    repaint = None
    if request.mask or request.outpaint:
        _check_same_shape(image, request.mask)
        repaint = Repaint(
            mask=request.mask, blur=request.mask_blur, padding=request.mask_padding if request.only_masked else None,
            content=request.masked_content or ("fill" if request.outpaint else "original"), outpaint=request.outpaint,
        )  # fmt: skip
    elif request.only_masked:
        raise Usage("--only-masked needs a mask", hint="the same command with --mask mask.png")
    if request.only_masked and request.outpaint:
        raise Usage(
            "--only-masked draws within the image, --outpaint around it", hint="the same command without --only-masked"
        )
    return Start(
        image=image, strength=_strength(request), fit=request.fit, repaint=repaint,
        guidance=request.image_guidance if request.edits else None,
    )  # fmt: skip


def _check_same_shape(image: InputImage, mask: InputImage | None) -> None:
    """A mask may be smaller or larger, as long as each of its pixels belongs to one place of the image."""
    if mask is None:
        return
    expected = mask.width * image.height / image.width
    if abs(expected - mask.height) > max(1.0, mask.height / image.height):
        raise Usage(
            f"the mask {show(mask.name, 60)} is {mask.width}×{mask.height}, the image {show(image.name, 60)} "
            f"{image.width}×{image.height}: another shape",
            hint="a mask made from the image itself",
        )


def _check_room(width: int, height: int, added: Sides) -> None:
    across, down = width - added.left - added.right, height - added.top - added.bottom
    if min(across, down) < SIDES[0]:
        raise Usage(
            f"--outpaint leaves {across}×{down} for the image within {width}×{height}",
            hint="the same command without --size",
        )


def _sides(request: Request, image: InputImage | None) -> dict[str, int]:
    """Those that nobody set are the image's: its own size, or what keeps its shape."""
    if image is None or not request.sides_of_image or request.only_masked:
        return {}
    if request.outpaint:
        image = replace(
            image, width=image.width + request.outpaint.left + request.outpaint.right,
            height=image.height + request.outpaint.top + request.outpaint.bottom,
        )  # fmt: skip
    width, height = (max(request.multiple, side - side % request.multiple) for side in (image.width, image.height))
    if request.sides_of_image == ("height",):
        width, height = request.width, _nearest(request.width * image.height / image.width, request.multiple)
    if request.sides_of_image == ("width",):
        width, height = _nearest(request.height * image.width / image.height, request.multiple), request.height
    for value in (width, height):
        if not SIDES[0] <= value <= SIDES[1]:
            near = "x".join(str(min(max(side, SIDES[0]), SIDES[1])) for side in (width, height))
            raise Usage(
                f"{show(image.name, 80)} would be drawn at {width}×{height}; sides are {SIDES[0]} to {SIDES[1]}",
                hint=f"--size {near}",
            )
    return {"width": width, "height": height}


def _nearest(side: float, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


def renumbered(jobs: Iterable[Job]) -> tuple[Job, ...]:
    """Jobs from several lines as those of one run, no more than a run may have."""
    numbered = tuple(replace(job, index=index) for index, job in enumerate(islice(jobs, MOST_JOBS + 1)))
    if len(numbered) > MOST_JOBS:
        raise Usage(f"more than {MOST_JOBS} images in one run", hint="--seed 1..8")
    return numbered


# --- a forgotten quote


def forgotten_quotes(words: tuple[str, ...]) -> Usage | None:
    """Several prompts of one word each are a sentence whose quotes were forgotten; the error adds them."""
    if len(words) < 2 or any(len(word.split()) != 1 for word in words):
        return None
    hint = quoted(" ".join(words))
    if len(words) <= 10:
        separate = " ".join(f"-p {quoted(word)}" for word in words)
        hint += f"      (or {show(separate)} to mean {_COUNTS[len(words) - 2]})"
    return Usage(
        f"{len(words)} prompts of one word each look like one sentence without quotes",
        hint=hint if len(hint) <= 400 and show(hint) == hint else '"a red cat"',
    )


_COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
