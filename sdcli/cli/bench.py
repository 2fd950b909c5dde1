"""`sdcli bench`: time per step with its interval, sweeps, and `bench compare`: faster, slower or inconclusive."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import typer

from sdcli import data, schema
from sdcli.asking import not_taken, planning
from sdcli.bench import build, page, random_models, screen, surroundings
from sdcli.bench import result as results
from sdcli.bench.result import BenchResult
from sdcli.bench.run import MAX_TIME, QUICK_TIME, Bench, Configuration, Limits, Listener, OngoingCase, scratch
from sdcli.cli import bench_options, complete
from sdcli.cli.answer import Answered, print_json, say_error, say_note
from sdcli.cli.bench_compare import compare
from sdcli.errors import Bug, CannotWrite, Interrupted, ModelMissing, SdcliError, Stop, Usage, stopped_by
from sdcli.files import cannot_write, save
from sdcli.live import LiveLine
from sdcli.machine import memories
from sdcli.machine.folders import config_folder
from sdcli.models.model import Model
from sdcli.plan.footprint import COMPILE
from sdcli.plan.plan import Plan
from sdcli.plan.refusal import refused
from sdcli.plan.remembered import Measures
from sdcli.record import remembering
from sdcli.request import config
from sdcli.request.options import command as make
from sdcli.terminal import fit, quoted, say, show, speaks_unicode, tell, width

PROMPT = "a lighthouse on a cliff in the morning light"
SEED = "1"
MOST_ROWS = 64
FRAME = 0.1  # seconds between two frames of the live line
QUIET_SECONDS = 2.0  # between two lines where no terminal shows them


def command() -> typer.Typer:
    program = typer.Typer(rich_markup_mode=None)
    measure = make(
        _bench, bench_options.BENCH, name="bench", complete=complete.asked(),
        help="Measure time per step, memory and images: sdcli bench -m sd15 --sweep dtype=fp32,bf16",
    )  # fmt: skip
    program.callback(invoke_without_command=True)(_unless_subcommand(measure))
    program.command("compare")(
        make(
            compare, bench_options.COMPARE, name="compare", words="[BASELINE] [CANDIDATE]",
            complete=complete.asked(), help="Compare two results: sdcli bench compare old.json new.json",
        )
    )  # fmt: skip
    return program


def _unless_subcommand(measure: Callable[..., None]) -> Callable[..., None]:
    """`bench` itself measures; with a subcommand it does nothing."""

    def front(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            measure(**values)

    signature = inspect.signature(measure)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = inspect.Parameter("context", kind, annotation=typer.Context)
    front.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
    front.__annotations__ = {"context": typer.Context, **measure.__annotations__}
    front.__doc__ = measure.__doc__
    return front


# --- measuring


def _bench(typed: dict[str, Any]) -> None:
    limits = _limits(typed)
    configurations = _configurations(typed)
    preset = _preset_file(typed)
    plans = [one.plan for one in configurations if one.plan is not None]
    if not plans:
        raise configurations[0].error or Usage("nothing to measure", hint="--quick")
    plan = plans[0]
    if not typed.get("quiet"):
        _say_not_taken(plan)
    machine = memories.machine_of(plan.hardware)
    options = {name: value for name, value in typed.items() if name not in ("json", "quiet", "debug", "save", "html")}
    about = surroundings.provenance(plan.hardware, build.model_hash(plan), options)
    destination = _destination(typed, plan)
    with scratch() as folder:
        bench = Bench(configurations, limits, folder)

        def result_so_far() -> BenchResult:
            types = {one.setup.dtype for one in plans}
            ceilings = {kind: rate for kind in types if (rate := memories.best_rate(machine, kind))}
            return build.build(bench, configurations[0].name, ceilings, about)

        def keep() -> None:
            if destination is not None and any(case.measured for case in bench.cases):
                results.write(result_so_far(), destination)

        error = _run(bench, BenchProgress(bench, quiet=bool(typed.get("quiet")), keep=keep))
        result = result_so_far()
    if not result.measured:
        raise error or next((case.error for case in bench.cases if case.error), Bug("nothing was measured"))
    if limits.engine == "local":
        _remember(result, machine)
        for case in bench.cases:
            remember_case(case)
    failures = [failure for write in _files(typed, result, destination, preset) if (failure := _failure(write))]
    error = error or next(iter(failures), None)
    _show(
        typed,
        replace(result, error=error.to_json() if error is not None else None),
        destination if not failures else None,
    )
    if error is not None:
        if not typed.get("json"):
            say_error(error)
        raise Answered(error.code)


def _say_not_taken(plan: Plan) -> None:
    """The settings that --settings-from could not apply, and what is used instead."""
    for warning in plan.warnings:
        if warning.code == not_taken.SETTINGS:
            say_note(warning.message)


def _files(
    typed: Mapping[str, Any], result: BenchResult, destination: Path | None, preset: Path | None
) -> Iterator[Callable[[], None]]:
    """The files to write. One that fails stops neither the others nor the screen."""
    if destination is not None:
        yield lambda: results.write(result, destination)
    if typed.get("html"):
        yield lambda: save(Path(typed["html"]), page.html(result), hint="--html ~/bench.html")
    if preset is not None:
        yield lambda: _save_preset(preset, result)


def _failure(write: Callable[[], None]) -> CannotWrite | None:
    try:
        write()
    except CannotWrite as error:
        return error
    return None


def _run(bench: Bench, listener: BenchProgress) -> SdcliError | None:
    try:
        bench.run(listener)
    except (KeyboardInterrupt, Stop) as stop:
        return stopped_by(stop)
    except Interrupted as error:  # its worker was interrupted
        return error
    finally:
        listener.done()
    return None


def _limits(typed: Mapping[str, Any]) -> Limits:
    quick = bool(typed.get("quick"))
    processes = bench_options.whole_number(typed, "processes", "--processes", 1 if quick else 5)
    if quick and processes > 1:
        raise Usage(f"--quick measures one process, not {processes}", hint="the same command without --quick")
    most = bench_options.whole_number(typed, "max_time", "--max-time", int(QUICK_TIME if quick else MAX_TIME))
    return Limits(processes=processes, quick=quick, max_time=float(most), engine=planning.engine_of(typed))


def _remember(result: BenchResult, machine: str) -> None:
    for case in result.measured:
        if case.work_rate.ceiling:
            memories.remember_rate(machine, case.setup["dtype"], case.work_rate.ceiling)


def remember_case(case: OngoingCase) -> None:
    """For the next plan: what was measured of one configuration."""
    plan, steps = case.configuration.plan, [seconds for image in case.measured for seconds in image.steps]
    peaks = build.memory_of(case).measured
    if plan is None or not steps or any(image.drawn.degraded for image in case.images):
        return
    if any(part.random for part in plan.model.components.values()):  # made, not read: loading takes less memory
        return
    found = Measures(
        device_peak=peaks.reserved_peak, allocated_peak=peaks.allocated_peak, host_peak=peaks.host_peak,
        step=median(steps),
        compile=min((each for image in case.images if (each := image.drawn.phases.get(COMPILE))), default=None),
    )  # fmt: skip
    remembering.keep(plan, plan.batch(0), found)


# --- what to measure


def _configurations(typed: dict[str, Any]) -> list[Configuration]:
    base = _with_defaults(typed)
    sweeps = [bench_options.sweep(text) for text in typed.get("sweep", ())]
    rows = list(itertools.product(*(values for _, values in sweeps)))
    if len(rows) > MOST_ROWS:
        raise Usage(f"--sweep: {len(rows)} configurations, more than {MOST_ROWS}", hint="--sweep dtype=fp32,bf16")
    return [_configuration(base, dict(zip((name for name, _ in sweeps), row, strict=True))) for row in rows]


def _with_defaults(typed: dict[str, Any]) -> dict[str, Any]:
    """One prompt and one seed by default; and no fallbacks: exactly what is named is measured."""
    base = {name: value for name, value in typed.items() if name not in {o.field for o in bench_options.MEASURING}}
    base.setdefault("prompts", [PROMPT])
    base.setdefault("seeds", SEED)
    base["fallback"] = "no"
    base["random_weights"] = bool(typed.get("random_weights"))
    return base


def _configuration(base: Mapping[str, Any], chosen: Mapping[str, str]) -> Configuration:
    name = " ".join(f"{key}={value}" for key, value in chosen.items()) or "as asked"
    flags = " ".join(filter(None, (bench_options.flags_for(key, value) for key, value in chosen.items())))
    typed = dict(base)
    for key, value in chosen.items():
        bench_options.choose(typed, key, value)
    try:
        return Configuration(name=name, options=chosen, flags=flags, plan=_plan(typed))
    except SdcliError as error:
        error.hint = bench_options.hint_of(error.hint, chosen)
        return Configuration(name=name, options=chosen, flags=flags, error=error)


def _plan(typed: dict[str, Any]) -> Plan:
    typed = dict(typed)
    random = typed.pop("random_weights")
    if typed.get("batch_size"):
        typed["num_images"] = typed["batch_size"]
    plan = planning.plan_for(typed, "bench", _model(typed, random)).plan
    if not plan.model.cached and typed.get("engine") != "fake":
        name = show(plan.model.name, 80)
        raise ModelMissing(
            f"{name} is not on this machine; its structure with random weights takes as long per step",
            hint="--random-weights",
        )
    if not plan.fits:
        raise refused(plan)
    return plan


def _model(typed: Mapping[str, Any], random: bool) -> Model:
    """What -m says, as files or as structure alone; without -m the built-in model, or a tiny random one."""
    sources = planning.read_sources(config.from_flags(typed))
    values, _ = config.resolve(sources, family={}, model={})
    if not values.get("model") and data.builtin_model() is None:
        return random_models.tiny()
    model = planning.find_model(sources)
    return random_models.randomised(model) if random else model


# --- progress


class BenchProgress(Listener):
    """One live line on a terminal, a plain line now and then elsewhere; saves the result after each round."""

    def __init__(self, bench: Bench, *, quiet: bool, keep: Callable[[], None]) -> None:
        self.bench = bench
        self.keep = keep
        self.quiet = quiet
        self.live = LiveLine(sys.stderr, frame=FRAME)
        self._line = self._stage = self._shown = ""
        self._last_line = -QUIET_SECONDS
        self._written = 0

    def turn(self, case: OngoingCase, warmup: bool) -> None:
        count = self.bench.process + 1
        limit = "" if self.bench.limits.quick else f" of {max(count, self.bench.limits.processes)}"
        what = "warming up" if warmup else "measuring"
        name = "" if len(self.bench.cases) == 1 else f"{show(case.configuration.name, 40)}, "
        self._line = f"process {count}{limit} · {name}{what}"
        self._stage = f"process {count}{limit} · {what}" + (f" {len(self.bench.cases)} in turn" if name else "")
        self._update("")

    def step(self, step: int, of: int) -> None:
        self._update(f" · step {step}/{of}")

    def probing(self, case: OngoingCase) -> None:
        self._line = self._stage = "measuring the device's peak rate"
        self._update("", now=True)

    def drew(self, case: OngoingCase) -> None:
        medians = self.bench.medians(case)
        self._update(f" · {screen.time_text(medians[-1])} a step" if medians else "")

    def round_done(self) -> None:
        """Save every few seconds. If that fails, measuring continues: only the last save counts."""
        if self.bench.seconds - self._written > 2 or self._written == 0:
            with contextlib.suppress(CannotWrite):
                self.keep()
            self._written = int(self.bench.seconds) + 1

    def done(self) -> None:
        self.live.hide()

    def _update(self, more: str, now: bool = False) -> None:
        if self.quiet:
            return
        if self.live.moves:
            spent = f"{self.bench.seconds:4.0f} s  "
            self.live.show(fit(spent + self._line + more, self.live.room), now=now)
        elif self._stage != self._shown and self.bench.seconds - self._last_line >= QUIET_SECONDS:
            self._shown, self._last_line = self._stage, self.bench.seconds
            say(self._stage)


# --- output


def _destination(typed: Mapping[str, Any], plan: Plan) -> Path | None:
    """--save, else a new file in sdcli-bench; with --json only if --save is given."""
    if typed.get("html"):
        _writable(Path(typed["html"]), "--html ~/bench.html")
    if typed.get("json") and not typed.get("save"):
        return None
    path = Path(typed["save"]) if typed.get("save") else _new_file(plan)
    _writable(path, results.ELSEWHERE)
    return path


def _new_file(plan: Plan) -> Path:
    date = surroundings.now_utc()[:10]
    stem = re.sub(r"[^a-z0-9]+", "-", f"{date}-{plan.model.name}-{plan.hardware.name}".casefold()).strip("-")[:80]
    for number in itertools.count(1):
        path = Path("sdcli-bench") / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        if not os.path.exists(path):
            return path
    raise AssertionError("counting has no end")


def _writable(path: Path, elsewhere: str) -> None:
    """Fail before minutes are spent on a result that cannot be saved."""
    if os.path.isdir(path):
        raise Usage(f"{show(path)} is a folder", hint=elsewhere)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # too long a name
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise cannot_write(path, error, hint=elsewhere) from None


def _show(typed: Mapping[str, Any], result: BenchResult, destination: Path | None) -> None:
    if typed.get("json"):
        print_json(schema.to_json(result))
        return
    if typed.get("markdown"):
        for line in screen.markdown(result):
            tell(line)
    if not typed.get("quiet"):
        for line in screen.render(result, width(sys.stderr), not speaks_unicode(sys.stderr)):
            say(line)
        say("")
        for line in _next(result, destination):
            say(line)
        if typed.get("save_preset") and results.best(result) is not None:
            say(f"Saved as a preset: --preset {typed['save_preset']}")
    if destination is not None and not typed.get("markdown"):
        tell(str(destination))


def _next(result: BenchResult, destination: Path | None) -> Iterator[str]:
    if result.work.model in ("builtin", "tiny-random"):
        yield "For figures comparable with others': sdcli bench -m sd15 --random-weights"
    yield "Cite: --markdown, --html FILE"
    name = quoted(str(destination)) if destination is not None else "old.json"
    yield f"Gate: sdcli bench compare {show(name, 200)} new.json"


PRESET_NOTE = "Fastest in a bench on "


def _preset_file(typed: Mapping[str, Any]) -> Path | None:
    """The file of --save-preset; refuses before anything is measured if it could not be saved."""
    if "save_preset" not in typed:
        return None
    name = str(typed["save_preset"])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name, re.ASCII):
        raise Usage(f'--save-preset: "{show(name, 60)}" is not a valid preset name', hint="--save-preset fast")
    swept = [name for name, _ in map(bench_options.sweep, typed.get("sweep", ()))]
    settings = {key: option.field for key, option in bench_options.FLAGS.items() if key not in bench_options.SLOTS}
    passing = [key for key in swept if settings.get(key) in {*config.NOT_KEPT, "preset"}]
    if not swept or passing:
        why = f"--sweep {passing[0]} is not a setting of a preset" if passing else "there is no --sweep to choose from"
        raise Usage(
            f"--save-preset saves the fastest row: {why}",
            hint="--sweep dtype=fp32,bf16 --save-preset fast",
        )
    path = config_folder() / "presets" / f"{name}.toml"
    if os.path.exists(path) and not str(config.read_toml(path).get("description", "")).startswith(PRESET_NOTE):
        raise Usage(f"--save-preset: {show(path)} exists and was not written by bench", hint="sdcli config path")
    return path


def _save_preset(path: Path, result: BenchResult) -> None:
    """Save the fastest row that draws the reference's image as a user preset."""
    chosen = results.best(result)
    if chosen is None:
        return
    pins = {key: value for key, value in chosen.options.items() if key in bench_options.SLOTS}
    rest = {bench_options.FLAGS[key].field: value for key, value in chosen.options.items() if key not in pins}
    lines = [f'description = "{PRESET_NOTE}{surroundings.now_utc()[:10]}"']
    lines += [f"{field} = {json.dumps(value)}" for field, value in rest.items()]
    if pins:
        lines.append("pins = { " + ", ".join(f"{slot} = {json.dumps(choice)}" for slot, choice in pins.items()) + " }")
    save(path, "\n".join(lines) + "\n", hint="sdcli config path")
