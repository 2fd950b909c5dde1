"""`sdcli doctor`: what this machine offers, what is installed, and what is wrong, each with the line that fixes it."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sdcli import __version__, data, schema
from sdcli.asking import planning
from sdcli.cli import builtin
from sdcli.cli.answer import print_json
from sdcli.errors import SdcliError, Usage
from sdcli.machine import installation, memory, packages, survey
from sdcli.machine.folders import config_file
from sdcli.machine.hardware import Hardware, Notice, Probe
from sdcli.machine.packages import Version
from sdcli.machine.survey import Survey
from sdcli.models import hub_cache, hub_connection, resolve
from sdcli.request.options import OUTPUT, SCREEN, Option
from sdcli.request.options import command as make
from sdcli.sizes import gib
from sdcli.terminal import cells, counted, disk_text, folded, seconds_text, show, tell, width

GPU_CODES = ("gpu-unusable", "gpu-no-driver", "no-torch")
WHERE = {"checkout": "in this checkout", "system": "in the system's Python", "venv": "in a venv"}
LEAST_DISK = 1_000_000_000


def command() -> Callable[..., None]:
    screen = [option for option in SCREEN if option.field in ("json", "debug")]
    network = Option(
        field="network", flags=("--network",), switch=True, panel=OUTPUT, help="Also check whether the Hub answers."
    )
    return make(_doctor, [network, *screen], name="doctor", help="Check this machine: GPU, versions, models, disk.")


def _doctor(typed: Mapping[str, Any]) -> None:
    """Print what was found. Exit with 8 if a GPU is present but unusable (or nothing can draw at all), with 2 if the
    settings are wrong, with 3 if --network was given and the Hub does not answer."""
    examination = examine(network=bool(typed.get("network")))
    if typed.get("json"):
        print_json(schema.to_json(examination.diagnosis))
    else:
        for line in screen(examination, width(sys.stdout)):
            tell(line)
    raise typer.Exit(exit_code(examination.diagnosis))


# --- the examination


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The answer of --json."""

    schema: str = "sdcli.doctor/1"
    version: str = __version__
    installation: str
    python: str
    platform: str
    devices: tuple[Hardware, ...]
    versions: tuple[Version, ...]
    models: tuple[ModelState, ...]
    folders: tuple[FolderState, ...]
    network: bool | None  # null: not tried
    problems: tuple[Notice, ...]


@dataclass(frozen=True, kw_only=True)
class ModelState:
    name: str
    ready: bool
    download_bytes: int


@dataclass(frozen=True, kw_only=True)
class FolderState:
    name: str  # images | models | config
    path: str
    exists: bool
    free: int | None


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The diagnosis, and what only the screen needs."""

    diagnosis: Diagnosis
    survey: Survey
    probe: Probe | None
    network: str | None  # what the Hub answered, if it was asked


def examine(*, network: bool = False, seen: Survey | None = None) -> Examination:
    """Everything doctor reports. Only reads; uses the network only if `network`."""
    seen = seen or survey.look()
    versions = packages.versions()
    folders = _folders()
    answer = reach(os.environ.get("HF_ENDPOINT") or hub_connection.USUAL) if network else None
    diagnosis = Diagnosis(
        installation=seen.installation.kind,
        python=platform.python_version(),
        platform=system_name(),
        devices=(*survey.usable(seen), *survey.unusable_gpus(seen)),
        versions=versions,
        models=_models(),
        folders=folders,
        network=answer[0] if answer else None,
        problems=(*_problems(seen, versions, folders), *_settings_problem(), *_network_problem(answer)),
    )
    probe = seen.probe(seen.processor.name, seen.processor.isa)
    return Examination(diagnosis=diagnosis, survey=seen, probe=probe, network=answer[1] if answer else None)


def _models() -> tuple[ModelState, ...]:
    models = [ModelState(name="builtin", ready=data.builtin_model() is not None, download_bytes=0)]
    for name in ("sd15", "sdxl"):
        try:
            model = resolve.resolve(name, hub=hub_cache.folder(os.environ))
        except (SdcliError, OSError):  # a damaged copy is not a ready one; drawing with it says what is wrong
            models.append(ModelState(name=name, ready=False, download_bytes=0))
            continue
        models.append(ModelState(name=name, ready=model.cached, download_bytes=model.download_bytes))
    return tuple(models)


def _folders() -> tuple[FolderState, ...]:
    places = {
        "images": Path.cwd() / "sdcli-images",
        "models": hub_cache.folder(os.environ),
        "config": config_file(),
    }
    return tuple(
        FolderState(name=name, path=str(path), exists=os.path.exists(path), free=memory.disk_free(path))
        for name, path in places.items()
    )


def _problems(seen: Survey, versions: tuple[Version, ...], folders: tuple[FolderState, ...]) -> tuple[Notice, ...]:
    problems = []
    gpu = survey.gpu_problem(seen)
    if seen.torch is None:
        hint = installation.command_line([seen.installation.python, "-m", "pip", "install", "torch"])
        problems.append(Notice(code="no-torch", message="torch is not installed, so nothing can be drawn", hint=hint))
    elif gpu is not None:
        hint = gpu.hint if gpu.hint != "sdcli doctor" else "install NVIDIA's driver from nvidia.com/drivers, restart"
        problems.append(Notice(code=gpu.code, message=gpu.message, hint=hint))
    for version in versions:
        problems += _version_problem(version, seen)
    for folder in folders:
        if folder.name in ("images", "models") and folder.free is not None and folder.free < LEAST_DISK:
            problems.append(
                Notice(
                    code="disk-full",
                    message=f"{disk_text(folder.free)} free for {folder.name}, in {show(folder.path)}",
                    hint="free some space there" if folder.name == "images" else "hf cache prune",
                )
            )
    return tuple(problems)


def _settings_problem() -> list[Notice]:
    """The error in the settings at which every other command would stop."""
    try:
        planning.read_sources({})
        planning.added_folders()
    except Usage as error:
        return [Notice(code="config", message=error.message, hint=error.hint)]
    return []


def _network_problem(answer: tuple[bool, str] | None) -> list[Notice]:
    if answer is None or answer[0]:
        return []
    hint = "sdcli doctor --network   (once the connection is back; HF_ENDPOINT and HTTPS_PROXY are used)"
    return [Notice(code="network", message=answer[1], hint=hint)]


def _version_problem(version: Version, seen: Survey) -> list[Notice]:
    floor = packages.below_floor(version.name, version.version)
    missing = not version.version and version.name != "torch"
    if floor is None and not missing:
        return []
    requirement = f"{version.name}>={data.lowest_versions()[version.name]}"
    state = (
        "is not installed" if missing else f"{show(version.version)} is older than {floor}, the oldest tested version"
    )
    hint = installation.command_line([seen.installation.python, "-m", "pip", "install", requirement])
    return [Notice(code="version", message=f"{version.name} {state}", hint=hint)]


def exit_code(diagnosis: Diagnosis) -> int:
    """Of the most serious problem; a full disk or an old library does not stop an image."""
    codes = {problem.code for problem in diagnosis.problems}
    return 8 if codes & set(GPU_CODES) else 2 if "config" in codes else 3 if "network" in codes else 0


def reach(address: str) -> tuple[bool, str]:
    """Whether the Hub answers one request, and how; the environment's proxies are used, nothing is sent along."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    if not address.startswith(("https://", "http://")):
        return False, f"HF_ENDPOINT is not a web address: {show(address, 60)}"
    started = time.perf_counter()
    try:
        with urlopen(Request(address, method="HEAD"), timeout=10):
            pass
    except HTTPError as error:
        return False, f"{show(address, 60)} answers with error {error.code}"
    except (OSError, ValueError) as error:
        return False, f"{show(address, 60)} does not answer: {show(getattr(error, 'reason', error), 80)}"
    return True, f"{show(address, 60)} answers in {seconds_text(time.perf_counter() - started)}"


def system_name() -> str:
    """Windows 11, macOS 15.1, Ubuntu 24.04."""
    if sys.platform == "win32":
        return f"Windows {platform.release()}"
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        about = platform.freedesktop_os_release()
        return f"{about['NAME']} {about.get('VERSION_ID', '')}".strip()
    except OSError:
        return f"{platform.system()} {platform.release()}"


# --- the screen


def screen(examination: Examination, columns: int = 80) -> list[str]:
    """The lines of the screen; commands to paste are never broken."""
    return [part for line in _lines(examination, columns) for part in _folded(line, columns)]


def _folded(line: str, columns: int) -> list[str]:
    if cells(line) <= columns or "  try: " in line or "-m pip" in line:
        return [line]
    start = re.match(r"(?:\w+ {2,}| *)", line)
    first = start[0] if start else ""
    return folded(line[len(first) :], columns, first)


def _lines(examination: Examination, columns: int) -> list[str]:
    return [
        *_entry("machine", [_machine_line(examination)]),
        *_gpu_lines(examination, columns),
        *_entry("CPU", [_cpu_line(examination)]),
        *_entry("python", _version_lines(examination.diagnosis)),
        *_entry("models", _model_lines(examination.diagnosis)),
        *_entry("disk", [_disk_line(examination.diagnosis)]),
        *_entry("network", [_network_line(examination)]),
        *_entry("config", [_config_line(examination.diagnosis)]),
        "",
        *_ending(examination.diagnosis),
    ]


def _entry(label: str, texts: list[str]) -> list[str]:
    return [f"{label if number == 0 else '':<9}{text}" for number, text in enumerate(texts)]


def _machine_line(examination: Examination) -> str:
    chip, host = examination.survey.processor, examination.survey.memory
    cores = counted(chip.cores, "core")
    if chip.threads < chip.cores:
        cores = f"{chip.threads} of {cores} usable"
    limit = " within this container" if host.limited else ""
    return (
        f"{show(examination.diagnosis.platform)}, {show(chip.name)} ({cores}), "
        f"RAM {gib(host.total)} GiB{limit}, {gib(host.available)} free"
    )


def _gpu_lines(examination: Examination, columns: int) -> list[str]:
    seen = examination.survey
    apple = [_entry("GPU", _usable_lines(d, columns)) for d in survey.usable(seen) if d.kind == "mps"]
    lines = [line for gpu in survey.gpus(seen) for line in _entry("GPU", _found_lines(gpu, examination, columns))]
    lines += [line for entry in apple for line in entry]
    if lines:
        return lines
    problem = next((problem for problem in examination.diagnosis.problems if problem.code == "gpu-no-driver"), None)
    if problem is not None:
        return _entry("GPU", [f"✗ {problem.message}"])
    if seen.hidden:
        return _entry("GPU", ["hidden by CUDA_VISIBLE_DEVICES"])
    if seen.torch is not None and (seen.torch.hip or seen.torch.xpu):
        build = f"torch {show(seen.torch.version)} is for {'AMD' if seen.torch.hip else 'Intel'} GPUs"
        return _entry("GPU", [f"none found; {build}"])
    return _entry("GPU", ["none found; using the CPU"])


def _found_lines(gpu: survey.Found, examination: Examination, columns: int) -> list[str]:
    if gpu.unusable is None:
        return _usable_lines(gpu.hardware, columns)
    mark = "✗ torch can't use" if gpu.expected else "– not used"
    texts = [_with_mark(_device_line(gpu.hardware), mark, columns), f"  {show(gpu.unusable)}"]
    problems = examination.diagnosis.problems
    hint = gpu.fix or next((p.hint for p in problems if p.code == "gpu-unusable" and gpu.expected), None)
    if hint is not None:
        size = "about 3 GB" if gpu.hardware.backend == "cuda" else "several GB"
        texts.append(f"  {hint}" + (f"   ({size})" if "torch" in hint else ""))
    return texts


def _usable_lines(device: Hardware, columns: int) -> list[str]:
    notes = (f"  {note}" for note in device.notes)
    return [_with_mark(_device_line(device), f"✓ {device.device}", columns), *notes]


def _device_line(device: Hardware) -> str:
    driver = f", driver {show(device.driver)}" if device.driver else ""
    sizes = (
        f"{gib(device.total)} GiB, {gib(device.free)} free" if device.total else "memory as torch tells when drawing"
    )
    return f"{show(device.name, 40)}, {sizes}{driver}"


def _with_mark(text: str, mark: str, columns: int) -> str:
    """The text with its mark at the right edge."""
    return text + " " * max(2, min(80, columns) - 9 - cells(text) - cells(mark)) + mark


def _cpu_line(examination: Examination) -> str:
    chip, probe = examination.survey.processor, examination.probe
    dtypes = next(device for device in examination.diagnosis.devices if device.kind == "cpu").dtypes
    bf16 = "✓" if dtypes["bf16"] != "unavailable" else "✗"
    ratio = probe.ratio.get("bf16") if probe is not None else None
    if ratio is not None and probe is not None:
        pace = f"{ratio:.1f}× slower" if ratio > 1 else f"{1 / ratio:.1f}× faster"
        bf16 += f" {pace} than fp32 here (tested for {probe.seconds:.1f} s)"
    elif dtypes["bf16"] == "assumed":
        bf16 += f" ({chip.isa}), not tested yet"
    else:
        bf16 += f" not supported by {chip.isa or 'this CPU'}"
    found = next(device.compiler for device in examination.diagnosis.devices if device.kind == "cpu")
    return f"fp32 ✓   bf16 {bf16}   fp16 never   compile {'✓' if found else '✗ no C++ compiler'}"


def _version_lines(diagnosis: Diagnosis) -> list[str]:
    by_name = {version.name: version.version.removesuffix(".0") for version in diagnosis.versions}
    shown = [f"{name} {show(by_name[name] or 'missing')}" for name in ("torch", "diffusers", "transformers")]
    whether = "the tested set" if packages.tested(diagnosis.versions) else "not the tested set"
    where = WHERE.get(diagnosis.installation, f"by {diagnosis.installation}")
    lines = [*folded(", ".join([diagnosis.python, *shown]), 71, rest="  "), f"  {whether}, installed {where}"]
    for version in diagnosis.versions:
        if version.known_bad is not None:
            note = f"{version.name} {show(version.version)}: {version.known_bad}"
            lines += folded(note, 71, "  ", "  ")
    return lines


def _model_lines(diagnosis: Diagnosis) -> list[str]:
    lines = ["   ".join(_model_text(model) for model in diagnosis.models)]
    ready = [model.name for model in diagnosis.models if model.ready]
    return [*lines, "  Photographs: sdcli pull sd15"] if ready == ["builtin"] else lines


def _model_text(model: ModelState) -> str:
    if model.ready:
        return f"{model.name} ✓ {builtin.WHAT}" if model.name == "builtin" else f"{model.name} ✓"
    if model.name == "builtin":
        return "builtin ✗ not in this build"
    return f"{model.name} – {disk_text(model.download_bytes)}" if model.download_bytes else f"{model.name} ✗ damaged"


def _disk_line(diagnosis: Diagnosis) -> str:
    images, models = (next(f for f in diagnosis.folders if f.name == name) for name in ("images", "models"))
    elsewhere = f" ({_free(models)} free)" if models.free != images.free else ""
    return f"images {_free(images)} free   cache {show(_short(models.path))}{elsewhere}"


def _free(folder: FolderState) -> str:
    return "unknown" if folder.free is None else disk_text(folder.free)


def _network_line(examination: Examination) -> str:
    if examination.network is None:
        return "not tried (sdcli doctor --network); nothing is sent anywhere"
    return ("✓ " if examination.diagnosis.network else "✗ ") + examination.network


def _config_line(diagnosis: Diagnosis) -> str:
    config = next(folder for folder in diagnosis.folders if folder.name == "config")
    return f"{show(_short(config.path))}" + ("" if config.exists else ": none, all defaults")


def _short(path: str) -> str:
    """~ for the home folder, as people write it."""
    home = os.path.expanduser("~")
    return "~" + path[len(home) :] if len(home) > 1 and path.startswith(home + os.sep) else path


def _ending(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.problems:
        return ["No problems."]
    lines = []
    for problem in diagnosis.problems:
        if problem.code != "gpu-unusable":  # shown beside the GPU
            lines += [f"problem: {problem.message}", f"    try: {problem.hint}"]
    count = counted(len(diagnosis.problems), "problem") + "."
    codes = {problem.code for problem in diagnosis.problems}
    able = "" if "no-torch" in codes else " Running on the CPU only." if codes & set(GPU_CODES) else ""
    code = exit_code(diagnosis)
    return [*lines, count + able + (f" (exit {code})" if code else "")]
