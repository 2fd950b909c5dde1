"""`sdcli verify`: draws images again from their own settings, and says whether they are what comes of these."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli import __version__, schema
from sdcli.asking.planning import plan_for
from sdcli.cli import complete
from sdcli.cli.again import check_inputs
from sdcli.cli.answer import Answered, print_json
from sdcli.cli.recorded import as_recorded
from sdcli.errors import Bug, DeviceUnusable, Differs, DoesNotFit, Usage, from_json
from sdcli.events import Decoded, Done, Failed, Loaded
from sdcli.images import read as images
from sdcli.images.difference import Difference, compare
from sdcli.machine.environment import environment
from sdcli.plan.plan import Plan
from sdcli.plan.refusal import refused
from sdcli.record.metadata import a1111, read
from sdcli.record.metadata.own import ImageRecord
from sdcli.record.metadata.read import ImageSettings
from sdcli.record.sinks.progress import Progress
from sdcli.record.verdict import Drawn, Verdict, Verdicts, explanations
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


def command() -> Callable[..., None]:
    options = [option for option in OPTIONS if option.field in FILES]
    screen = [option for option in SCREEN if option.field in ("json", "quiet", "debug", "engine")]
    return make(
        _verify, [*options, *screen], name="verify", words="IMAGE", complete=complete.values,
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
    asked = {**typed, "settings_from": file, "num_images": "1"}  # whatever the user's own default is
    plan = plan_for(asked, "generate" if settings.record is None else "plan").plan
    progress = Progress(sys.stderr, quiet=bool(typed.get("quiet")))
    if settings.record is None:
        image, _ = _drawn(engine, plan, 0, progress)
        difference = _difference(image, _pixels(file))
        return Verdict(
            file=file, verdict=_verdict(difference is not None and difference.identical), dialect=settings.dialect,
            difference=difference, not_followed={name: str(value) for name, value in settings.unknown.items()},
        )  # fmt: skip
    record = _as_drawn(settings.record)
    exact = not settings.record.enlarged and Path(file).suffix.lower() in EXACT
    plan, position = _under_its_setup(plan, record)
    image, drawn = _drawn(engine, plan, position, progress)
    stored = _pixels(file) if exact else None
    edited = stored is not None and _sha256(stored.pixels) != record.pixel_sha256
    same = drawn.pixel_sha256 == record.pixel_sha256
    return Verdict(
        file=file, verdict=_verdict(same and not edited), dialect=settings.dialect, edited=edited,
        difference=_difference(image, stored), explained=tuple(explanations(record, drawn, _told_beside(settings))),
    )  # fmt: skip


def _verdict(same: bool) -> str:
    return "identical" if same else "different"


def _as_drawn(record: ImageRecord) -> ImageRecord:
    """The record of an image that was enlarged since, as it was before."""
    return replace(record, pixel_sha256=record.enlarged[0].pixel_sha256) if record.enlarged else record


def _told_beside(settings: ImageSettings) -> Mapping[str, Any]:
    """What the text for other programs says."""
    return a1111.values(a1111.read(settings.beside))[0] if settings.beside is not None else {}


# --- drawing it again


def _under_its_setup(plan: Plan, record: ImageRecord) -> tuple[Plan, int]:
    """The plan for the image, in the batch and under the setup that it was drawn in; where this machine cannot, under
    one that it can. And the image's position in its batch."""
    located = plan.jobs[0]
    members = record.batch.members if _alike(record.batch.members, record.job) else ()
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


def _alike(members: Sequence[Job], job: Job) -> bool:
    """Whether they are drawn from the same files: those of others are not given."""
    drawn_from = [schema.to_json((one.start, one.controls, one.references)) for one in (job, *members)]
    return all(one == drawn_from[0] for one in drawn_from)


def _beside(member: Job, located: Job) -> Job:
    """Another job of the batch, with the same files."""
    return replace(
        member, start=located.start, controls=located.controls, references=located.references, second=located.second,
        refined=located.refined,
    )  # fmt: skip


def _drawn(engine: Any, plan: Plan, position: int, progress: Progress) -> tuple[Decoded, Drawn]:
    if not plan.fits:
        raise refused(plan)
    image, unet, around = None, None, environment(plan.hardware)
    for event in engine.run(plan):
        progress(event)
        if isinstance(event, Decoded) and event.index == position:
            image = event
        elif isinstance(event, Loaded) and event.component == "unet":
            unet = event.sha256
        elif isinstance(event, Failed):
            raise from_json(dict(event.error))
        elif isinstance(event, Done):
            around |= event.environment
    progress.finish()
    if image is None:
        raise Bug("no image came of the plan")
    return image, Drawn(
        version=__version__, job=image.job, setup=image.setup or plan.setup, scheduler=image.scheduler,
        environment=around, model_hash=plan.model.hash, unet_sha256=unet, pixel_sha256=_sha256(image.pixels),
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
        yield f"  {one.field}: {show(one.then, 80)} then, {show(one.now, 80)} now"
    if verdict.identical:
        return
    if verdict.not_followed:
        yield f"  not followed: {', '.join(f'{show(k, 40)} {show(v, 60)}' for k, v in verdict.not_followed.items())}"
    elif not verdict.explained and not verdict.edited:
        yield "  nothing that its record names explains it"


def _by(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return (
        f": by at most {difference.largest} of 255, in {difference.share:.1%} of all values, {difference.psnr:.1f} dB"
    )
