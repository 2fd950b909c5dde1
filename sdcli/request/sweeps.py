"""--sweep: every combination of some values of some settings, a job for each, all with one seed unless seeds are swept.

`guidance=3,5,7`, numbers as ranges `0.4..1:0.2`, and words of the prompt as A1111's X/Y/Z plot has them:
`S/R old,new,newer`.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import PurePath
from typing import Any, NamedTuple

from sdcli.errors import SdcliError, Usage
from sdcli.near import near_text, nearest
from sdcli.request import config, jobs, prompt_files, samplers
from sdcli.request.options import OPTIONS
from sdcli.request.prompt_files import Line
from sdcli.request.request import Axis, Job, LoraWeight, Request
from sdcli.terminal import show

HINT = "sdcli help sweeps"
_WORDS, _PROMPT, LORA = "S/R", "prompt", "lora."
MOST_WEIGHT = 10
_FILES = {"image", "mask", "control", "reference", "reference_mask"}
# What comes of a text encoder: jobs of one text stand together, so that each text is encoded once.
_OF_TEXT = (_WORDS, _PROMPT, "negative_prompt", "emphasis", "clip_skip")


class Swept(NamedTuple):
    """An axis as it was asked for: the field it sets, and for each value its label and what it is."""

    name: str
    field: str
    values: tuple[tuple[str, Any], ...]
    word: str = ""  # that is replaced

    @property
    def axis(self) -> Axis:
        return Axis(name=self.name, values=tuple(label for label, _ in self.values))


def read(texts: Sequence[str]) -> tuple[Swept, ...]:
    """The axes; names, values and their number are checked."""
    swept = tuple(map(_read, texts))
    names = [one.name for one in swept]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Usage(f"--sweep {show(twice, 60)}: swept twice", hint=HINT)
    _check_count(len(one.values) for one in swept)
    return swept


def _check_count(counts: Iterable[int]) -> None:
    cells = 1
    for count in counts:
        cells *= count
        if cells > jobs.MOST_JOBS:
            raise Usage(f"--sweep: more than {jobs.MOST_JOBS} cells", hint=HINT)


def _read(text: str) -> Swept:
    words = re.fullmatch(r"\s*s/r[\s=:]+(.+)", text, re.IGNORECASE | re.DOTALL)
    if words:
        return _of_words(_listed(words[1]))
    name, equals, listed = text.partition("=")
    if not equals:
        raise Usage(f'--sweep: "{show(text, 60)}" is not NAME=A,B', hint="--sweep guidance=3,5,7")
    if name.strip().startswith(LORA):
        return _of_lora(name.strip(), _listed(listed))
    flag, field = _field(name)
    values = [one for part in _listed(listed) for one in _range(field, part)]
    if not values:
        raise Usage(f"--sweep {show(flag, 60)}: no values", hint=HINT)
    converted = []
    for value in values:
        try:
            converted.append(config.convert(field, value))
        except Usage as error:
            raise Usage(f"--sweep {error.message.removeprefix('--')}", hint=HINT) from None
    if field == "seeds":
        values, converted = _seeds(converted)
    labels = [value if field != "sampler" else converted[place] for place, value in enumerate(values)]
    return _checked(Swept(flag, field, tuple(zip(labels, converted, strict=True))))


def _of_lora(name: str, texts: Sequence[str]) -> Swept:
    values = [one for text in texts for one in _range(LORA, text)]
    for value in values:
        if not re.fullmatch(r"-?[0-9]{1,2}(\.[0-9]{1,6})?", value, re.ASCII) or abs(float(value)) > MOST_WEIGHT:
            raise Usage(
                f'--sweep {show(name, 60)}: "{show(value, 60)}" is not a weight from -{MOST_WEIGHT} to {MOST_WEIGHT}',
                hint="--sweep lora.NAME=0.4..1:0.2",
            )
    if not values or name == LORA:
        raise Usage("--sweep lora.NAME takes the weights of a LoRA", hint="--sweep lora.NAME=0.4..1:0.2")
    return _checked(Swept(name, LORA, tuple((value, float(value)) for value in values), name.removeprefix(LORA)))


def _of_words(words: list[str]) -> Swept:
    if len(words) < 2 or not words[0]:
        raise Usage("--sweep S/R takes the word of the prompt, then others", hint='--sweep "S/R cat,dog,fox"')
    name = f"{_WORDS} {words[0]}"
    return _checked(Swept(name, _WORDS, tuple((word, word) for word in words), words[0]))


def _checked(swept: Swept) -> Swept:
    for what in (0, 1):
        seen = [pair[what] for pair in swept.values]
        twice = next((place for place, value in enumerate(seen) if value in seen[:place]), None)
        if twice is not None:
            raise Usage(f"--sweep {show(swept.name, 60)}: {show(swept.values[twice][0], 60)} occurs twice", hint=HINT)
    return swept


def _listed(text: str) -> list[str]:
    """Values between commas; in quotes a value may have commas itself."""
    try:
        rows = list(csv.reader([text.replace("\n", " ")], skipinitialspace=True, strict=True))
    except csv.Error:
        raise Usage(f'--sweep: "{show(text, 60)}" has a quote that is not closed', hint=HINT) from None
    return [value.strip() for value in rows[0] if value.strip()] if rows else []


def names() -> Mapping[str, str]:
    """Flags, and the fields they set."""
    takes = {*prompt_files.SETTINGS, "seeds", "size", "scheduler"} - _FILES
    return {
        flag.removeprefix("--"): option.field
        for option in OPTIONS
        for flag in option.flags
        if flag.startswith("--") and option.field in takes and not option.hidden
    }


def _field(name: str) -> tuple[str, str]:
    """The flag, without its hyphens, and the field."""
    known, word = names(), name.strip().lstrip("-").replace("_", "-")
    if word in known:
        return word, known[word]
    whole = {option.field for option in OPTIONS} - {*known.values()}
    if word.replace("-", "_") in whole or word == "lora":
        raise Usage(
            f"--sweep {show(word, 60)}: that is one for a whole run, and the cells of a sweep are one run",
            hint=HINT,
        )
    near = nearest(word, known)
    raise Usage(
        f'--sweep: no setting "{show(word, 60)}"{near_text(near)}', hint=f"--sweep {near[0]}=A,B" if near else HINT
    )


_DECIMAL = r"[0-9]{1,12}(?:\.[0-9]{1,6})?"
_RANGE = re.compile(rf"({_DECIMAL})\.\.({_DECIMAL})(?::({_DECIMAL}))?")


def _range(field: str, text: str) -> list[str]:
    """`1..4`, `0.4..1:0.2`, both ends included; anything else is one value. In decimals, as they were typed."""
    found = _RANGE.fullmatch(text)
    if found is None or field == "seeds":
        return [text]
    first, last, step = Decimal(found[1]), Decimal(found[2]), Decimal(found[3] or "1")
    if step <= 0 or last < first:
        raise Usage(f"--sweep: {show(text, 60)} is not a range that goes up", hint=HINT)
    count = int((last - first) / step) + 1
    if count > jobs.MOST_JOBS:
        raise Usage(f"--sweep: more than {jobs.MOST_JOBS} cells", hint=HINT)
    return [f"{(first + step * place).normalize():f}" for place in range(count)]


def _seeds(listed: Sequence[tuple[int, ...]]) -> tuple[list[str], list[Any]]:
    seeds = [seed for some in listed for seed in some]
    if not seeds:
        raise Usage("--sweep seed: -1 is a random one, and there is nothing to sweep", hint="--sweep seed=1..4")
    return [str(seed) for seed in seeds], seeds


def loras(swept: Iterable[Swept]) -> tuple[str, ...]:
    """The LoRAs whose weights are swept, by name."""
    return tuple(one.word for one in swept if one.field == LORA)


# --- cells


def axes(swept: Sequence[Swept], request: Request) -> tuple[Swept, ...]:
    """What is swept, then several prompts, images to start from and seeds: these are axes too."""
    every = list(swept)
    if len(request.prompts) > 1:
        labels = [f"{number}: {show(prompt, 60)}" for number, prompt in enumerate(request.prompts, 1)]
        every.append(Swept(_PROMPT, _PROMPT, tuple(zip(labels, request.prompts, strict=True))))
    if len(request.image) > 1:
        images = ((f"{number}: {show(image.name, 60)}", (image,)) for number, image in enumerate(request.image, 1))
        every.append(Swept("image", "image", tuple(images)))
    if len(request.seeds) > 1 and not any(one.field == "seeds" for one in swept):
        every.append(Swept("seed", "seeds", tuple((str(seed), seed) for seed in request.seeds)))
    _check_count(len(one.values) for one in every)
    return tuple(every)


def make(request: Request, swept: Sequence[Swept]) -> tuple[Request, tuple[Job, ...]]:
    """The request with its axes, and a job for each cell. A job's id says which cell it is."""
    every = axes(swept, request)
    _check_words(every, request)
    whole, request = request, replace(request, seeds=request.seeds[:1], num_images=1)
    order = sorted(range(len(every)), key=lambda place: _rank(every[place]))  # the last changes fastest
    made: list[Job] = []
    for chosen in itertools.product(*(every[place].values for place in order)):
        cell = {every[place].name: pair for place, pair in zip(order, chosen, strict=True)}
        line = _line(request, every, {name: value for name, (_, value) in cell.items()})
        line = replace(line, id=name_of({one.name: cell[one.name][0] for one in every}))
        loras = tuple(
            LoraWeight(name=PurePath(one.word).stem, weight=cell[one.name][1]) for one in every if one.field == LORA
        )
        try:
            made += (replace(job, lora_weights=loras) for job in prompt_files.jobs_of(request, line, len(made)))
        except SdcliError as error:
            raise Usage(f"--sweep: with {show(line.id, 200)}: {error.message}", hint=HINT) from None
    return replace(whole, sweep=tuple(one.axis for one in every)), tuple(made)


def _rank(swept: Swept) -> int:
    """What costs most to change changes least often: the model's weights, then what is encoded."""
    return 0 if swept.field == LORA else 1 if swept.field in _OF_TEXT else 2


def name_of(cell: Mapping[str, str]) -> str:
    """`guidance=3, sampler=Euler`: a job's id."""
    return ", ".join(f"{name}={label}" for name, label in cell.items())


def _check_words(swept: Sequence[Swept], request: Request) -> None:
    for one in swept:
        if one.field == _WORDS and not any(one.word in text for text in (*request.prompts, request.negative_prompt)):
            raise Usage(f'--sweep S/R: "{show(one.word, 60)}" does not occur in the prompt', hint=HINT)


def _line(request: Request, swept: Sequence[Swept], cell: Mapping[str, Any]) -> Line:
    fields_of = {one.name: one.field for one in swept}
    settings = {fields_of[name]: value for name, value in cell.items() if fields_of[name] not in (_WORDS, LORA)}
    prompt, seed = settings.pop(_PROMPT, request.prompts[0]), settings.pop("seeds", request.seeds[0])
    negative = settings.get("negative_prompt", request.negative_prompt)
    for one in swept:
        if one.field == _WORDS:
            prompt, negative = (text.replace(one.word, cell[one.name]) for text in (prompt, negative))
    if negative != request.negative_prompt:
        settings["negative_prompt"] = negative
    if "size" in settings:
        width, height = settings.pop("size")
        settings = {"width": width, "height": height, **settings}
    if (schedule := settings.pop("scheduler", None)) is not None:
        settings["sampler"] = samplers.with_schedule(settings.get("sampler", request.sampler), schedule).name
    return Line(prompt=prompt, where="--sweep", seeds=(seed,), settings=settings)


def cells(swept: Sequence[Axis]) -> dict[str, tuple[int, ...]]:
    """Every cell by its job's id: which value of each axis it has."""
    places = itertools.product(*(range(len(axis.values)) for axis in swept))
    return {
        name_of({axis.name: axis.values[number] for axis, number in zip(swept, place, strict=True)}): place
        for place in places
    }


def described(swept: Sequence[Axis]) -> str:
    """`3 guidance × 2 sampler = 6 cells`."""
    total = 1
    for axis in swept:
        total *= len(axis.values)
    return f"{' × '.join(f'{len(axis.values)} {show(axis.name, 40)}' for axis in swept)} = {total} cells"
