"""`sdcli upscale`: images made larger by a model for that, in tiles, with a memory plan before it is loaded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sdcli import schema, sizes
from sdcli.asking import enlarging
from sdcli.asking.planning import read_sources
from sdcli.cli import complete
from sdcli.cli.answer import Answered, bug_of, print_json, say_error, say_note, trace
from sdcli.cli.ending import check, hold, over
from sdcli.errors import SdcliError, Stop, Usage, from_json, stopped_by
from sdcli.events import Enlarged, Event
from sdcli.images.read import MADE_WHITE, InputImage
from sdcli.machine.clock import since_start
from sdcli.plan.techniques.technique import gib
from sdcli.plan.upscaling import UPSCALE, UpscalePlan, of_job, refused
from sdcli.record import enlarged
from sdcli.record.enlarged import Folding, Report
from sdcli.record.names import Destination
from sdcli.record.sinks.paths import Paths
from sdcli.record.sinks.summary import fallback_text, flow
from sdcli.record.sinks.tiles import Tiles
from sdcli.record.sinks.watch import Watch
from sdcli.request import config
from sdcli.request.options import EVERYDAY, MEMORY, OPTIONS, SCREEN, Option
from sdcli.request.options import command as make
from sdcli.request.request import UPSCALERS
from sdcli.request.upscaling import Target, parse_target, parse_tile
from sdcli.terminal import StdoutLost, counted, plain, put, say, seconds_text, show, speaks_unicode, width

SCALE = Option(
    field="scale", flags=("--scale",), metavar="X|WxH", panel=EVERYDAY,
    help="How large images become: a factor or a size; as large as the model makes them if omitted.",
)  # fmt: skip
TILE = Option(
    field="tile", flags=("--tile",), metavar="N", panel=MEMORY,
    help="Pixels a side that are enlarged at once; the largest that fit if omitted.",
)  # fmt: skip
_HELPS = {
    "upscaler": "The model: an ESRGAN or Real-ESRGAN .safetensors file, or its name in an added folder.",
    "fit": "With a --scale of another shape: crop, pad or stretch.",
    "output": "Folder, file, or a template such as {slug}-{width}.png.",
}
_SHARED = (
    "upscaler", "output", "fit", "device", "dtype", "max_vram", "max_ram", "fallback", "format", "metadata",
    "overwrite",
)  # fmt: skip
_EXAMPLE = "sdcli upscale photo.png --upscaler RealESRGAN_x4plus.safetensors"
_MOST_NAMED = 4


def command() -> Callable[..., None]:
    known = {option.field: option for option in OPTIONS}
    shared = [known[name]._replace(help=_HELPS.get(name, known[name].help)) for name in _SHARED]
    shared = [one._replace(panel=EVERYDAY) if one.field in ("upscaler", "output", "fit") else one for one in shared]
    screen = [option for option in SCREEN if option.field in ("json", "quiet", "debug")]
    return make(
        _upscale, [shared[0], SCALE, *shared[1:], TILE, *screen], name="upscale", words="IMAGE",
        complete=complete.asked(), help=f"Enlarge images with a model for that: {_EXAMPLE}",
    )  # fmt: skip


def _upscale(typed: dict[str, Any]) -> None:
    asked = _asked(typed)
    plan = _planned(typed, asked)
    if not plan.fits:
        raise refused(plan)
    destination = enlarging.destination(plan, asked.values, asked.origins)
    screen = Screen(typed, plan, destination)
    screen.announce()
    folding = Folding(plan, destination.folder)
    watch = Watch(screen.tiles, *screen.results(), record=folding)
    stored = enlarged.store(_events(plan), plan, destination, asked.values.get("metadata", "full"))
    error = _drain(watch(stored)) or watch.lost
    over()
    report = folding.report(since_start(), _completed(error, folding, destination))
    screen.finish(report)
    if error is not None and typed.get("debug"):
        trace(error)
    raise Answered(report.exit_code)


# --- what is asked


@dataclass(frozen=True, kw_only=True)
class Asked:
    images: tuple[InputImage, ...]
    values: dict[str, Any]
    origins: dict[str, str]


def _asked(typed: dict[str, Any]) -> Asked:
    words = tuple(typed.get("words", ()))
    if not words:
        raise Usage("no image", hint=_EXAMPLE)
    flags = config.from_flags(typed)
    values, origins = config.resolve(read_sources(flags), family={}, model={})
    if values.get("upscaler", UPSCALERS[0]) in UPSCALERS:
        raise Usage("--upscaler names no model; upscale needs one", hint=_EXAMPLE)
    return Asked(images=config.convert("image", words), values=values, origins=origins)


def _planned(typed: dict[str, Any], asked: Asked) -> UpscalePlan:
    target = parse_target(typed["scale"]) if "scale" in typed else Target()
    tile = parse_tile(typed["tile"]) if "tile" in typed else None
    return enlarging.plan_for(asked.images, asked.values, target, tile)


# --- the run


def _events(plan: UpscalePlan) -> Iterator[Event]:
    from sdcli.draw import local

    for event in local.enlarge(plan):
        if isinstance(event, Enlarged):
            hold()  # it is saved and its path printed, or neither
        yield event


def _drain(stream: Iterator[Event]) -> SdcliError | None:
    """Run to the end; an interruption or a typed failure ends the run, and what is saved stays."""
    try:
        for _ in stream:
            check()
    except (KeyboardInterrupt, Stop) as stop:
        return stopped_by(stop)
    except SdcliError as failed:
        return failed
    except Exception as failure:
        from sdcli.draw import oom

        return oom.without_a_plan(failure) if oom.is_out_of_memory(failure) else bug_of(failure)
    finally:
        with contextlib.suppress(KeyboardInterrupt, Stop):
            stream.close()  # type: ignore[attr-defined]  # a generator: all memory is freed
    return None


def _completed(error: SdcliError | None, folding: Folding, destination: Destination) -> SdcliError | None:
    """The error with what was kept."""
    kept = sum(image.status == "saved" for image in folding.images)
    if error is not None and not error.done and kept:
        error.done = f"{kept} of {counted(len(folding.images), 'image')} in {show(destination.folder, 200)}"
    return error


# --- what is shown


class Screen:
    def __init__(self, typed: dict[str, Any], plan: UpscalePlan, destination: Destination) -> None:
        self.plan, self.destination = plan, destination
        self.json, self.quiet = bool(typed.get("json")), bool(typed.get("quiet"))
        counts = [of_job(plan.model, job, plan.setup.upscaler_tile).tiles for job in plan.jobs]
        self.tiles = Tiles(sys.stderr, plan.jobs, counts, quiet=self.quiet)

    def announce(self) -> None:
        """What is done, on what, in how much memory; and what is not kept of an image."""
        if self.quiet:
            return
        plan, columns = self.plan, width(sys.stderr)
        on_cpu = plan.hardware.kind == "cpu"
        need, free = (
            (plan.footprint.host_peak, plan.hardware.ram_free)
            if on_cpu
            else (plan.footprint.device_peak, plan.hardware.free)
        )
        pieces = [
            f"{show(plan.model.name, 60)} ×{plan.scale}",
            f"{'cpu' if on_cpu else show(plan.hardware.name, 40)} {plan.setup.dtype}",
            f"needs {sizes.gib(need)} of {sizes.gib(free)} GiB free", plan.because,
        ]  # fmt: skip
        for line in flow(pieces, columns):
            self._say(line)
        for job in plan.jobs[:_MOST_NAMED]:
            image = job.image
            self._say(f"  {show(image.name, 60)}  {image.width}×{image.height} → {job.width}×{job.height}")
        if len(plan.jobs) > _MOST_NAMED:
            self._say(f"  and {counted(len(plan.jobs) - _MOST_NAMED, 'more image')}")
        for note in self._notes():
            say_note(note)

    def _notes(self) -> list[str]:
        opaque = self.destination.format == "jpg"
        notes = [
            f"{show(job.image.name, 80)}: {what}"
            for job in self.plan.jobs
            for what in job.image.told
            if what != MADE_WHITE or opaque
        ]
        more = len(notes) - _MOST_NAMED
        return notes if more <= 0 else [*notes[:_MOST_NAMED], f"{more} more images like these"]

    def _say(self, line: str) -> None:
        say(line if speaks_unicode(sys.stderr) else plain(line))

    def results(self) -> list[Callable[[Event], None]]:
        return [] if self.json else [Paths(put, os.getcwd())]

    def finish(self, report: Report) -> None:
        self.tiles.finish()
        if report.kept and not self.quiet:
            for line in flow(self._summary(report), width(sys.stderr)):
                self._say(line)
        if self.json:
            try:
                print_json(schema.to_json(report))
            except StdoutLost as lost:
                if report.error is None:
                    raise
                say_error(lost)
        elif report.error is not None:
            say_error(from_json(dict(report.error)))

    def _summary(self, report: Report) -> list[str]:
        peaks = next(one for one in report.memory if one.phase == UPSCALE)
        on_cpu = self.plan.hardware.kind == "cpu"
        measured = peaks.host if on_cpu else peaks.device
        predicted = peaks.predicted_host if on_cpu else peaks.predicted_device
        pieces = [f"{report.kept} images"] if report.kept > 1 else []
        pieces.append(f"{seconds_text(report.seconds)} in all")
        if measured:
            pieces.append(f"peak {gib(measured)}, predicted {gib(predicted)}")
        return [*pieces, *(fallback_text(one) for one in report.degraded)]
