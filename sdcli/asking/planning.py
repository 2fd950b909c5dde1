"""From what was asked for to a Plan: settings by precedence, the model, the machine, the decision. Nothing heavy."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdcli import __version__, data
from sdcli.asking import (
    adapters,
    changed_images,
    controls,
    not_needed,
    not_taken,
    probing,
    references,
    refiners,
    unknown_words,
    upscalers,
)
from sdcli.errors import ModelMissing, Usage
from sdcli.machine import as_if, memories
from sdcli.machine.folders import config_file, config_folder
from sdcli.machine.hardware import Hardware
from sdcli.models import cache, hub_cache, resolve, vae
from sdcli.models.model import Model
from sdcli.near import nearest
from sdcli.plan.plan import Plan, PlanWarning
from sdcli.plan.planner import make_plan
from sdcli.plan.processes import Division, divisions
from sdcli.plan.techniques import execution
from sdcli.request import config, jobs, samplers
from sdcli.request.config import Sources
from sdcli.request.options import CPU_AUTO, OPTIONS, SCREEN, flag_of
from sdcli.request.request import Job, Request
from sdcli.terminal import show

if TYPE_CHECKING:
    from sdcli.machine.several import Seat
    from sdcli.record.metadata.read import ImageSettings
    from sdcli.request.prompt_files import Line


_OF_ONE_DEVICE = ("device", "as_if")


class PlannedRun(NamedTuple):
    """A plan, and the jobs still to come, if they are read from stdin."""

    plan: Plan
    later: Iterator[Job] | None = None
    imported: float = 0.0  # seconds spent loading libraries, if planning already needed them

    @property
    def shared(self) -> PlannedRun:
        """What --shard leaves of it. The plan was made for everything, as in every other shard."""
        shard = self.plan.request.shard
        if shard is None:
            return self
        from sdcli.plan import shards

        return self._replace(plan=shards.share(self.plan, shard, more=self.later is not None))


def plan_for(
    typed: Mapping[str, Any], command: str, model: Model | None = None, fetch: adapters.Fetch | None = None,
    without_own: Callable[[Hardware], Hardware] = lambda hardware: hardware, decide: Callable[..., Plan] = make_plan,
    image: ImageSettings | None = None, cluster: Sequence[Seat] = (),
) -> PlannedRun:  # fmt: skip
    """The plan for what was typed; every refusal happens here, before anything is loaded. `model` replaces -m,
    `fetch` downloads LoRAs and ControlNets from the Hub: without it, one that is not on this machine is an error.
    `without_own`: the hardware as an engine sees it that holds a model already; `decide` may know decisions; `image`:
    what --settings-from would read, read already; `cluster`: what draws instead of this machine."""
    engine = engine_of(typed, cluster=bool(cluster))
    if typed.get("devices") == CPU_AUTO:
        _check_without(typed, _OF_ONE_DEVICE, "--devices")
        on_cpu = {name: value for name, value in typed.items() if name != "devices"} | {"device": "cpu"}
        return _divided(plan_for(on_cpu, command, model, fetch, without_own, decide, image), command, engine)
    words = tuple(typed.get("words", ()))
    mistake = jobs.forgotten_quotes(words)
    if mistake is not None:
        raise mistake
    flags = config.from_flags(typed)
    sources = read_sources(flags, image)
    model, refiner = model or find_model(sources), find_refiner(sources)
    lines = _lines(flags.get("prompts_file"))
    first = next(lines, None) if lines is not None else None
    if lines is not None and (words or flags.get("prompts")):
        raise Usage("prompts both on the command line and from --prompts", hint="the same command without --prompts")
    if lines is not None and first is None:
        raise Usage("--prompts -: stdin contains no prompt", hint="sdcli help formats")
    prompts = (*words, *flags.get("prompts", ())) or tuple(map(escaped, sources.settings_from.get("prompts", ())))
    request, origins = _request(sources, model, prompts or ((first.prompt,) if first else ()))
    waiting = flags.get("prompts_file") == "-"
    request = replace(request, shard=jobs.parse_shard(typed["shard"]) if "shard" in typed else None)
    swept = typed.get("sweep", ()) if command in ("generate", "plan") else ()
    if swept and lines is not None:
        raise Usage("--sweep draws from a prompt, --prompts from a file", hint="the same command without --prompts")
    seats = cluster or seats_of(typed, without_own)
    if len(seats) > 1 and not cluster:
        request = replace(request, devices=typed["devices"])
    if request.shard is not None and origins["seeds"] == "random":
        from sdcli.asking import sharing

        first, lines = sharing.seeded(first, lines)
    if swept:
        from sdcli.request import sweeps  # of no use to others

        axes = sweeps.read(swept)
        request, cells = sweeps.make(adapters.with_loras(request, sweeps.loras(axes)), axes)
    known_jobs, tags = adapters.untagged(cells if swept else _jobs(request, first, lines, waiting))
    largest = max(known_jobs, key=lambda job: job.width * job.height)
    request = replace(
        request, prompts=tuple(dict.fromkeys(job.prompt for job in known_jobs)), width=largest.width,
        height=largest.height,
    )  # fmt: skip
    for name in dict.fromkeys(job.sampler for job in known_jobs):
        _check_sampler(name, model)
    embeddings = adapters.known_words(added_folders())
    named = adapters.named_in(adapters.texts_of(known_jobs), embeddings)
    adapted = adapters.gather(request, tags, model, added_folders(), fetch, named)
    adapters.check_swept(known_jobs[0], adapted.adapters)
    asked = tuple(_drawn_by(model, known_jobs))
    steered_jobs, steered, nets = controls.gather(asked, adapted.model, added_folders(), fetch, request.offline)
    seeing, seen = references.gather(request, steered_jobs, steered, added_folders())
    known_jobs, enlarging, models = upscalers.gather(steered_jobs, seeing, added_folders())
    known_jobs, refined, others = refiners.gather(refiner, known_jobs, enlarging)
    adapted = adapted._replace(model=refined, adapters=(*adapted.adapters, *nets, *seen, *models, *others))
    hardware, imported = _hardware(request, typed.get("as_if"))
    if seats:
        hardware = least(seats).hardware
        request = replace(request, device=hardware.device)
    else:
        hardware = without_own(hardware)
    if command == "generate" and engine == "local" and "dtype" not in request.pins:
        hardware, more_imported = probing.probed(hardware)
        imported += more_imported
    question = probing.question(hardware, adapted.model, known_jobs, request)
    hardware = probing.remembered(hardware, question)
    planned = partial(
        _planned, decide, request, adapted.model, origins=origins, jobs=known_jobs, version=__version__,
        adapters=adapted.adapters, more=waiting,
    )  # fmt: skip
    plan = planned(hardware, remembered(hardware))
    if command != "plan" and engine == "local" and plan.fits and question and hardware.trial is None:
        hardware, more_imported = probing.tried(plan, question)
        imported += more_imported
        plan = planned(hardware, remembered(hardware))
    plan = with_workers(plan, seats, more=waiting)
    plan = replace(plan, warnings=(*plan.warnings, *not_needed.not_needed(typed, plan)))
    unknown = unknown_words.unknown_words(model, known_jobs, adapted.adapters)
    syntax = not_taken.plain_words(adapters.texts_of(known_jobs), no_files=request.wildcards is None)
    ignored = not_taken.not_taken(sources.not_taken, request, origins, adapted.adapters)
    told = changed_images.told(known_jobs)
    plan = replace(plan, warnings=(*plan.warnings, *adapted.warnings, *unknown, *ignored, *syntax, *told))
    if not waiting or lines is None:
        return PlannedRun(plan, imported=imported)
    from sdcli.asking import sharing

    later = adapters.without(sharing.later(request, lines, len(known_jobs), len(plan.batches)), tags)
    later = upscalers.same(controls.same_nets(later, known_jobs, asked, steered), known_jobs, asked)
    later = references.checked(later, adapted.model)
    later = refiners.named(_drawn_by(model, later), refiner)
    return PlannedRun(plan, adapters.same_embeddings(later, embeddings, adapted.adapters, adapted.model), imported)


def _planned(decide: Callable[..., Plan], *about: Any, **more: Any) -> Plan:
    """The plan; where only a package is missing for it, with the line that installs it."""
    try:
        return decide(*about, **more)
    except Usage as error:
        if error.details.get("because") == execution.NOT_INSTALLED:
            from sdcli.machine import installation  # for this error alone

            error.hint = installation.adding("openvino", installation.find())
        raise


def _check_sampler(name: str, model: Model) -> None:
    sampler = samplers.find(name)
    samplers.check_edm(sampler, model.edm)
    samplers.check_zero_snr(sampler, model.zero_snr)


def engine_of(typed: Mapping[str, Any], *, cluster: bool = False) -> str:
    """The requested engine: a misspelled one must not draw (and download) for real. `cluster`: whether here it may be
    one."""
    typed_name = str(typed.get("engine", "local"))
    name = "ray" if typed_name.startswith("ray=") else typed_name
    choices = next(option.choices for option in SCREEN if option.field == "engine")
    if name not in choices:
        near = nearest(name, choices, 1) or choices
        raise Usage(f'--engine: "{show(name, 60)}" is not one of {", ".join(choices)}', hint=f"--engine {near[0]}")
    if name == "ray" and not cluster:
        raise Usage("--engine ray is for generate and resume", hint="the same command without --engine")
    return name


def of_cluster(typed: Mapping[str, Any]) -> str | None:
    """The address of the Ray cluster that is asked for; "" for the one that this machine is in."""
    if engine_of(typed, cluster=True) != "ray":
        return None
    _check_without(typed, ("device", "devices", "as_if", "keep_steps"), "--engine ray")
    return str(typed["engine"]).partition("=")[2]


def plan_again(planned: PlannedRun, typed: Mapping[str, Any], image: ImageSettings | None = None) -> PlannedRun:
    """The same jobs, with the same seeds, planned for the model's files now on disk."""
    before = planned.plan
    model = find_model(read_sources(config.from_flags(typed), image))
    _check_sampler(before.request.sampler, model)
    model, _ = adapters.with_vae(before.request, model, added_folders())
    model = _with_beside(before.model, model)
    more = planned.later is not None
    plan = _anew(before, model, before.hardware, more=more)
    if before.workers:
        from sdcli.machine.several import Seat

        plan = with_workers(plan, [Seat(worker.name, worker.hardware) for worker in before.workers], more=more)
    return planned._replace(plan=plan)


def untried(plan: Plan) -> bool:
    """Whether `generate` would first try out something on this machine that decides on the plan."""
    hardware, request = plan.hardware, plan.request
    if "dtype" not in request.pins and probing.unprobed(hardware):
        return True
    # what there is to ask is counted last: most plans know the answer already
    untold = plan.fits and hardware.trial is None
    return untold and probing.question(hardware, plan.model, plan.jobs, request) is not None


def try_out(plan: Plan) -> None:
    """Tries it, and remembers what was found for all plans that follow; loads torch."""
    hardware, _ = _hardware(plan.request, None)
    if "dtype" not in plan.request.pins:
        probing.probed(hardware)
    plan = surveyed(plan)
    asked = probing.question(plan.hardware, plan.model, plan.jobs, plan.request)
    if plan.fits and asked is not None and plan.hardware.trial is None:
        probing.tried(plan, asked)


def surveyed(plan: Plan, without_own: Callable[[Hardware], Hardware] = lambda hardware: hardware) -> Plan:
    """The same jobs, planned for the machine as it is now, with what is known of it by now."""
    request, model = plan.request, plan.model
    seats = seats_of({} if request.devices is None else {"devices": request.devices}, without_own)
    if seats:
        hardware = least(seats).hardware
    else:
        hardware, _ = _hardware(request, None)
        threads, fast = plan.hardware.threads, plan.hardware.fast_threads  # a part of the CPU, where it was given one
        hardware = replace(without_own(hardware), threads=threads, fast_threads=fast)
    hardware = probing.remembered(hardware, probing.question(hardware, model, plan.jobs, request))
    return with_workers(_anew(plan, model, hardware), seats)


def _anew(before: Plan, model: Model, hardware: Hardware, *, more: bool = False) -> Plan:
    """The same jobs, planned again, with what was warned of before."""
    plan = _planned(
        make_plan, before.request, model, hardware, remembered(hardware), origins=before.origins, jobs=before.jobs,
        version=__version__, adapters=before.setup.adapters, more=more,
    )  # fmt: skip
    warned = tuple(warning for warning in before.warnings if warning not in plan.warnings)
    return replace(plan, warnings=(*plan.warnings, *warned))


def seats_of(
    typed: Mapping[str, Any], without_own: Callable[[Hardware], Hardware] = lambda hardware: hardware
) -> tuple[Seat, ...]:  # fmt: skip
    """What --devices names; none where it was not given."""
    if "devices" not in typed:
        return ()
    _check_without(typed, _OF_ONE_DEVICE, "--devices")
    from sdcli.machine import several, survey

    return several.seats(typed["devices"], survey.look(), without_own)


def _check_without(typed: Mapping[str, Any], fields: Iterable[str], beside: str) -> None:
    """That none of these was typed beside that flag."""
    other = next((name for name in fields if name in typed), None)
    if other is not None:
        flag = flag_of(other)
        raise Usage(f"{flag} does not go with {beside}", hint=f"the same command without {flag}")


def _divided(planned: PlannedRun, command: str, engine: str) -> PlannedRun:
    """The plan of a run on the whole CPU, for as many processes as draw it soonest."""
    from sdcli.asking import processes
    from sdcli.machine import several

    plan, more, imported = planned.plan, planned.later is not None, planned.imported
    may_try = command != "plan" and engine == "local" and plan.hardware.source == "os"
    shards = plan.request.shard.of if plan.request.shard is not None else 1
    batches = None if more else math.ceil(len(plan.batches) / shards)

    def divided(one: Division) -> Plan:
        nonlocal imported
        seats = several.divided(plan.hardware, one.processes, one.threads)
        before = replace(plan, request=replace(plan.request, devices=str(one) if len(seats) > 1 else None))
        asked = probing.question(seats[0].hardware, plan.model, plan.jobs, plan.request)
        hardware = probing.remembered(seats[0].hardware, asked)
        lead = _anew(before, plan.model, hardware, more=more)
        if may_try and lead.fits and asked is not None and hardware.trial is None:
            hardware, seconds = probing.tried(lead, asked)
            imported += seconds
            lead = _anew(before, plan.model, hardware, more=more)
        return with_workers(lead, [replace(seat, hardware=hardware) for seat in seats], more=more)

    def fits(one: Division) -> bool:
        return _anew(plan, plan.model, several.divided(plan.hardware, one.processes, one.threads)[0].hardware).fits

    possible = [one for one in divisions(plan.hardware.threads, batches) if fits(one)]
    chosen, because = processes.chosen(plan, possible, batches, may_try)
    found = divided(chosen) if chosen.processes > 1 else plan
    said = PlanWarning(code="processes", message=f"{chosen}: {because}")
    return planned._replace(plan=replace(found, warnings=(*found.warnings, said)), imported=imported)


def least(seats: Sequence[Seat]) -> Seat:
    """The one that decides: of GPUs, where there are any, that with the least memory."""
    return min(seats, key=lambda seat: (seat.hardware.kind == "cpu", seat.hardware.free))


def with_workers(plan: Plan, seats: Sequence[Seat], *, more: bool = False) -> Plan:
    """The plan of a run on several devices, from that of the one that decides."""
    if len(seats) < 2 and not any(seat.hardware.elsewhere for seat in seats):
        return plan

    def anew(hardware: Hardware) -> Plan:
        asked = probing.question(hardware, plan.model, plan.jobs, plan.request)
        hardware = probing.remembered(probing.sized(hardware)[0], asked)
        limit = None if hardware.kind == "cpu" else plan.request.max_vram  # beside GPUs it is meant for them
        before = replace(plan, request=replace(plan.request, max_vram=limit))
        return replace(_anew(before, plan.model, hardware, more=more), request=plan.request)

    from sdcli.plan.several import together

    named = [(seat.name, seat.hardware) for seat in seats]
    return together(plan, named, anew, remembered, more=more)


def _with_beside(before: Model, model: Model) -> Model:
    """A model whose files were read anew, with what was planned for beside its own components."""
    beside = {name: part for name, part in before.components.items() if name not in model.components}
    return replace(model, components={**model.components, **beside}, refiner=before.refiner)


def read_sources(flags: Mapping[str, Any], image: ImageSettings | None = None) -> Sources:
    """Config file, environment, preset and image, as far as the flags name them; an `image` read already is used as
    if it were named."""
    user = config.from_user(config_file())
    environment = config.from_environment(os.environ)
    preset = flags.get("preset") or environment.get("preset") or user.get("preset")
    if image is None and flags.get("settings_from"):
        image = _drawn_before(flags["settings_from"])
    return Sources(
        user=user,
        environment=environment,
        preset=config.from_preset(preset, config_folder() / "presets") if preset else {},
        settings_from=image.values if image else {},
        not_taken=image.unknown if image else {},
        flag=flags,
    )


def _drawn_before(file: Any) -> ImageSettings:
    """The settings stored in an image. Their reader is loaded only here: every command would wait for it."""
    from sdcli.record.metadata import read

    return read.read(file)


def find_model(sources: Sources) -> Model:
    """The requested model; if none is named the built-in one, else SD1.5."""
    model = look_for_model(sources)
    return replace(model, hash=_hash(model)) if model.source == "builtin" else model


def look_for_model(sources: Sources) -> Model:
    """The same, without hashing the built-in model: enough for its settings."""
    values, origins = config.resolve(sources, family={}, model={})
    name = values.get("model", default_model())
    try:
        model = resolve.resolve(
            name, revision=values.get("revision"), offline=bool(values.get("offline")), folders=added_folders(),
            hub=hub_cache.folder(os.environ), builtin=data.builtin_model(),
        )  # fmt: skip
    except ModelMissing as error:
        if origins.get("model") == "settings-from" and not error.details.get("repository"):
            raise _drawn_elsewhere(name) from None
        raise
    if values.get("revision") and model.source != "hub":
        raise Usage(
            f"--revision is for models of the Hub; {show(model.name, 80)} is {_SOURCES[model.source]}",
            hint="the same command without --revision",
        )
    return model


def find_refiner(sources: Sources) -> Model | None:
    """The model that takes the last steps, if one is asked for."""
    values, origins = config.resolve(sources, family={}, model={})
    if values.get("refiner") is None:
        return None
    recorded = origins["refiner"] == "settings-from"
    return refiners.located(
        values["refiner"], added_folders(), offline=bool(values.get("offline")), recorded=recorded
    )  # fmt: skip


_SOURCES = {"folder": "a local folder", "file": "a local file", "builtin": "built in"}


def _drawn_elsewhere(name: str) -> ModelMissing:
    """An image stores its model's name, never its path."""
    shown = show(name, 80)
    return ModelMissing(
        f"the image was drawn with {shown}, and there is no model of that name on this machine",
        hint=f"the same command with -m PATH   (of {shown})",
    )


def settings(sources: Sources, model: Model) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a run with this model, and where each comes from."""
    family = resolve.family_of(model)
    sampler = samplers.default_for(family.defaults["sampler"], model.zero_snr)
    return config.resolve(sources, family={**family.defaults, "sampler": sampler}, model=model.defaults)


def _hash(model: Model) -> str:
    """Of the built-in model's UNet, which may be another one in another version of sdcli."""
    return cache.sha256_of_all(model.components["unet"].files, memories.store("hashes"))[:10]


def added_folders() -> tuple[Path, ...]:
    """The model folders listed in the config file."""
    return config.folders(config_file())


def default_model() -> str:
    """The built-in model if this build has one, else the smallest named one."""
    return "builtin" if data.builtin_model() else "sd15"


def _request(sources: Sources, model: Model, prompts: tuple[str, ...]) -> tuple[Request, dict[str, str]]:
    if not prompts:
        raise Usage("no prompt", hint='"a cat"')
    values, origins = settings(sources, model)
    if origins.get("negative_prompt") == "settings-from":
        values["negative_prompt"] = escaped(values["negative_prompt"])
    if "wildcards" not in values and (folder := config_folder() / "wildcards").is_dir():
        values["wildcards"] = str(folder)
    seeds, drawn = jobs.resolve_seeds(values.get("seeds", ()), values.get("num_images"))
    values.update(prompts=prompts, seeds=seeds, num_images=len(seeds))
    values["model"] = values.get("model") or model.name
    values["multiple"] = vae.scale(model.components["vae"].config)
    values["edits"] = model.edits
    values["sides_of_image"] = tuple(
        side for side in ("width", "height") if origins.get(side) in (None, "family", "model")
    )
    origins["seeds"] = "random" if drawn else origins["seeds"]
    request = Request(**values)
    jobs.check(request)
    return request, {
        option.field: origins.get(option.field, "family") for option in OPTIONS if hasattr(request, option.field)
    }


def escaped(text: str) -> str:
    """The prompt of an image, in which nothing is to be chosen any more."""
    if not ("{" in text or "}" in text or "__" in text):
        return text
    from sdcli.request import wildcards

    return wildcards.escaped(text)


# --- jobs, from prompts or from lines


def _lines(source: str | None) -> Iterator[Line] | None:
    if source is None:
        return None
    from sdcli.request import prompt_files  # of no use to prompts on the command line

    if source == "-":
        return prompt_files.parse(sys.stdin, "stdin", "")
    return iter(prompt_files.read(Path(source)))


def _jobs(request: Request, first: Line | None, lines: Iterator[Line] | None, waiting: bool) -> tuple[Job, ...]:
    """The jobs known now: all of them; with stdin those of its first line, the only one read by now."""
    if first is None or lines is None:
        return jobs.make_jobs(request)
    from sdcli.request import prompt_files

    ready = [first] if waiting else [first, *lines]
    return jobs.renumbered(job for line in ready for job in prompt_files.of_line(request, line))


def _drawn_by(model: Model, listed: Iterable[Job]) -> Iterator[Job]:
    """These jobs, unless the model cannot draw one."""
    family = resolve.family_of(model)
    for job in listed:
        if family.refines and job.start is None:
            raise Usage(
                f"{show(model.name, 80)} is {family.title}: it draws over an image, or another's last steps",
                hint="the same command with --image photo.png",
            )
        if model.edm and job.start is not None and (repaint := job.start.repaint) is not None:
            raise Usage(
                f"{show(model.name, 80)} was trained with EDM's noise, and repaints no part of an image",
                hint=f"the same command without {'--outpaint' if repaint.outpaint else '--mask'}",
            )
        if job.second is not None and model.sees_mask:
            raise Usage(
                f"{show(model.name, 80)} was trained to repaint, and draws no second pass over what it drew",
                hint="the same command without --hires",
            )
        yield job


# --- the machine


def _hardware(request: Request, described: str | None) -> tuple[Hardware, float]:
    """And the seconds that torch took to tell of it; usually none."""
    if described is not None:
        return as_if.parse(described), 0.0
    from sdcli.machine import survey  # of no use to a described machine

    return probing.sized(survey.choose(request.device, survey.look()))


def remembered(hardware: Hardware) -> Mapping[str, Any]:
    """What this machine measured before; nothing for an --as-if machine."""
    return {} if hardware.source == "as-if" else memories.remembered(memories.machine_of(hardware))
