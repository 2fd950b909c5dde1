"""`sdcli verify`: draws images again from their own settings, and says whether they are what comes of these."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sdcli import __version__, schema
from sdcli.asking.not_taken import NO_SETTINGS
from sdcli.asking.planning import plan_for
from sdcli.cli import complete, searching
from sdcli.cli.again import check_inputs
from sdcli.cli.answer import Answered, print_json
from sdcli.cli.recorded import as_recorded
from sdcli.cli.searching import Found
from sdcli.errors import Bug, DeviceUnusable, Differs, DoesNotFit, Usage, from_json
from sdcli.events import Decoded, Done, Failed, Timed
from sdcli.images import read as images
from sdcli.images.difference import Difference, compare
from sdcli.machine import memories
from sdcli.machine.environment import environment
from sdcli.models import cache
from sdcli.models.fingerprint import fingerprints
from sdcli.models.model import Model
from sdcli.plan.batches import in_batches
from sdcli.plan.plan import Plan
from sdcli.plan.refusal import refused
from sdcli.record.metadata import read
from sdcli.record.metadata.own import ImageRecord, RecordedModel
from sdcli.record.metadata.read import ImageSettings
from sdcli.record.sinks.progress import Progress
from sdcli.record.verdict import Explanation, Verdict, Verdicts, explanations
from sdcli.request import samplers
from sdcli.request.options import OPTIONS, SCREEN
from sdcli.request.options import command as make
from sdcli.request.request import Job
from sdcli.terminal import counted, quoted, show, tell

# Where its files are, which an image names but never says; and what it was drawn over, which only its owner has.
FILES = (
    "model", "revision", "offline", "lora", "embeddings", "vae_file", "image", "mask", "control", "reference",
    "reference_mask", "reference_model", "reference_encoder", "refiner", "upscaler",
)  # fmt: skip
EXACT = (".png",)
SEED_OF_STEPS = "ENSD"  # the web UI's eta noise seed delta, added to the seed


def command() -> Callable[..., None]:
    options = [*(option for option in OPTIONS if option.field in FILES), searching.OPTION]
    screen = [option for option in SCREEN if option.field in ("json", "quiet", "debug", "engine")]
    return make(
        _verify, [*options, *screen], name="verify", words="IMAGE", complete=complete.asked(),
        help="Draw images again from their own settings; identical, or how far off, and why. Exit 10 if one differs.",
    )  # fmt: skip


def _verify(typed: dict[str, Any]) -> None:
    words = typed.pop("words", ())
    if not words:
        raise Usage("no image", hint="sdcli verify IMAGE")
    from sdcli.draw import engines

    verdicts = []
    with engines.engine(typed.get("engine", "local")) as engine:
        for file in [str(file) for word in words for file in images.files_of(word)]:
            verdict = _verdict_on(file, typed, engine)
            verdicts.append(verdict)
            if not typed.get("json"):
                for line in _told(verdict):
                    tell(line)
    different = [one for one in verdicts if not one.identical]
    if typed.get("json"):
        print_json(schema.to_json(Verdicts(images=tuple(verdicts))))
        raise Answered(Differs.code if different else 0)
    if different:
        count, of = len(different), counted(len(verdicts), "image")
        raise Differs(
            f"{count} of {of} {'differs' if count == 1 else 'differ'} from what the settings in it draw",
            hint=f"sdcli meta show {quoted(different[0].file)}",
        )


def _verdict_on(file: str, typed: Mapping[str, Any], engine: Any) -> Verdict:
    settings = read.read(file)
    check_inputs(file, settings, typed)
    asked = {**typed, "num_images": "1"}  # whatever the user's own default is
    plan = plan_for(asked, "generate" if settings.record is None else "plan", image=settings).plan
    drawing = partial(_drawn, engine, Progress(sys.stderr, quiet=bool(typed.get("quiet"))))
    if settings.record is None:
        return _on_another_programs(file, settings, plan, typed, drawing)
    record = _as_drawn(settings.record)
    exact = not settings.record.enlarged and Path(file).suffix.lower() in EXACT
    plan, position = _under_its_setup(plan, record)
    drawn = drawing(plan, position)
    stored = _pixels(file) if exact else None
    edited = stored is not None and _sha256(stored.pixels) != record.pixel_sha256
    same = drawn.pixel_sha256 == record.pixel_sha256
    explained = tuple(explanations(record, _recorded(record, plan, drawn), settings.beside))
    found = Found()
    if not same and not explained:
        found = searching.search(
            plan, lambda other: drawing(other, position).pixel_sha256 == record.pixel_sha256,
            seconds=drawn.seconds, asked=typed.get("search"), quiet=bool(typed.get("quiet")),
        )  # fmt: skip
    return Verdict(
        file=file, verdict=_verdict(same and not edited), dialect=settings.dialect, edited=edited,
        difference=_difference(drawn.image, stored), explained=(*explained, *found.explained), searched=found.drawn,
        not_searched=found.left,
    )  # fmt: skip


def _on_another_programs(
    file: str, settings: ImageSettings, plan: Plan, typed: Mapping[str, Any], drawing: Callable[[Plan, int], Drawn]
) -> Verdict:
    """Without a record. Only sdcli itself is likely to have drawn the very pixels with something else."""
    drawn, stored = drawing(plan, 0), _pixels(file)
    difference = _difference(drawn.image, stored)
    same, left = difference is not None and difference.identical, _not_followed(settings, plan)
    asked = typed.get("search", None if str(settings.unknown.get("Version", "")).startswith("sdcli") else False)
    explained = () if same else tuple(another_model(settings, plan.model))
    found = Found()
    if not same and not left and not explained:
        found = searching.search(
            plan, lambda other: drawing(other, 0).image.pixels == stored.pixels, seconds=drawn.seconds, asked=asked,
            quiet=bool(typed.get("quiet")),
        )  # fmt: skip
    return Verdict(
        file=file, verdict=_verdict(same), dialect=settings.dialect, difference=difference,
        explained=(*explained, *found.explained),
        searched=found.drawn, not_searched=found.left, not_followed=left,
    )  # fmt: skip


def another_model(settings: ImageSettings, model: Model) -> Iterator[Explanation]:
    """By the web UI's hash of a checkpoint, its file's; folders have none."""
    then = str(settings.unknown.get("Model hash", ""))
    files = {file for component in model.components.values() for file in component.files}
    now = model.hash or (cache.sha256_of(Path(*files), memories.store("hashes"))[:10] if len(files) == 1 else None)
    if now is not None and re.fullmatch(r"[0-9a-f]{10}", then) and then != now:
        yield Explanation(field="model.hash", then=then, now=now)


def _not_followed(settings: ImageSettings, plan: Plan) -> dict[str, str]:
    """What drew the image too, as far as it may move a pixel."""
    left = {name: str(value) for name, value in settings.unknown.items() if name not in NO_SETTINGS}
    if not samplers.find(plan.jobs[0].sampler).stochastic:
        left.pop(SEED_OF_STEPS, None)  # no step adds noise
    return left


def _verdict(same: bool) -> str:
    return "identical" if same else "different"


def _as_drawn(record: ImageRecord) -> ImageRecord:
    """The record of an image that was enlarged since, as it was before."""
    return replace(record, pixel_sha256=record.enlarged[0].pixel_sha256) if record.enlarged else record


# --- drawing it again


def _under_its_setup(plan: Plan, record: ImageRecord) -> tuple[Plan, int]:
    """The plan for the image, in the batch and under the setup that it was drawn in; where this machine cannot, under
    one that it can. And the image's position in its batch."""
    located = plan.jobs[0]
    members = record.batch.members if _together(record) else ()
    position = record.batch.position if members else 0
    jobs = tuple(
        replace(located if place == position else _beside(member, located), index=place)
        for place, member in enumerate(members or (record.job,))
    )
    plan = replace(plan, jobs=jobs, batches=(tuple(range(len(jobs))),))
    try:
        same, _ = as_recorded(replace(plan, setup=replace(record.setup, adapters=plan.setup.adapters)))
    except (DoesNotFit, DeviceUnusable):
        same = plan
    return same if same.fits else plan, position


def _together(record: ImageRecord) -> bool:
    """Whether the whole batch can be drawn: all from the same files, since no others are given, and as one."""
    members, position = record.batch.members, record.batch.position
    drawn_from = [schema.to_json((one.start, one.controls, one.references)) for one in (record.job, *members)]
    jobs = [*members[:position], record.job, *members[position + 1 :]]
    return all(one == drawn_from[0] for one in drawn_from) and len(in_batches(jobs, len(jobs))) == 1


def _beside(member: Job, located: Job) -> Job:
    """Another job of the batch, with the same files."""
    return replace(
        member, start=located.start, controls=located.controls, references=located.references, second=located.second,
        refined=located.refined,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawn:
    image: Decoded
    environment: Mapping[str, Any]
    seconds: float

    @property
    def pixel_sha256(self) -> str:
        return _sha256(self.image.pixels)


def _drawn(engine: Any, progress: Progress, plan: Plan, position: int) -> Drawn:
    if not plan.fits:
        raise refused(plan)
    started = time.perf_counter()
    image, around = None, environment(plan.hardware)
    for event in engine.run(plan):
        progress(event)
        if isinstance(event, Decoded) and event.index == position:
            image = event
        elif isinstance(event, Timed) and event.phase == "import":
            started += event.seconds  # once, whatever is drawn
        elif isinstance(event, Failed):
            raise from_json(dict(event.error))
        elif isinstance(event, Done):
            around |= event.environment
    progress.finish()
    if image is None:
        raise Bug("no image came of the plan")
    return Drawn(image=image, environment=around, seconds=time.perf_counter() - started)


def _recorded(record: ImageRecord, plan: Plan, drawn: Drawn) -> ImageRecord:
    """What would be recorded of it now."""
    model = RecordedModel(
        name=plan.model.name, revision=plan.model.revision, hash=plan.model.hash, weights=fingerprints(plan.model)
    )  # fmt: skip
    return replace(
        record, version=__version__, job=drawn.image.job, setup=drawn.image.setup or plan.setup, model=model,
        scheduler=drawn.image.scheduler, batch=replace(record.batch, size=len(plan.jobs)), degraded=(),
        environment=drawn.environment,
    )  # fmt: skip


# --- comparing


def _sha256(pixels: bytes) -> str:
    return hashlib.sha256(pixels).hexdigest()


@dataclass(frozen=True)
class Stored:
    width: int
    height: int
    pixels: bytes


def _pixels(file: str) -> Stored:
    image = images.decoded(file)
    return Stored(image.width, image.height, image.tobytes())


def _difference(image: Decoded, stored: Stored | None) -> Difference | None:
    if stored is None or (image.width, image.height) != (stored.width, stored.height):
        return None
    return compare(stored.pixels, image.pixels)


# --- telling


def _told(verdict: Verdict) -> Iterator[str]:
    name = show(verdict.file, 200)
    if verdict.edited:
        yield f"{name}: changed since it was drawn: its pixels are not those that its record names"
    elif verdict.identical:
        yield f"{name}: identical"
    else:
        yield f"{name}: different{_by(verdict.difference)}"
    for one in verdict.explained:
        if one.confirmed:
            yield f"  identical with {one.field} {show(one.now, 80)}: the image says {show(one.then, 80)}"
        else:
            yield f"  {one.field}: {show(one.then, 80)} then, {show(one.now, 80)} now"
    if not verdict.identical and not verdict.explained and not verdict.edited:
        yield from _unexplained(verdict)


def _unexplained(verdict: Verdict) -> Iterator[str]:
    if verdict.not_followed:
        yield f"  not followed: {', '.join(_left(name, value) for name, value in verdict.not_followed.items())}"
    elif verdict.searched:
        yield f"  nothing explains it: {counted(verdict.searched, 'drawing')} with one thing otherwise also differed"
    else:
        yield "  nothing that it says of itself explains it"
    if verdict.not_searched:
        yield f"  --search tries more: {verdict.not_searched}"


def _left(name: str, value: str) -> str:
    what = " (seeds the noise of each step)" if name == SEED_OF_STEPS else ""
    return f"{show(name, 40)} {show(value, 60)}{what}"


def _by(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return (
        f": by at most {difference.largest} of 255, in {difference.share:.1%} of all values, {difference.psnr:.1f} dB"
    )
