"""Every JSON document that sdcli prints or writes, and its JSON Schema."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from sdcli.cli.json_schema import Schema, Shapes, keys_of


@dataclass(frozen=True, kw_only=True)
class Document:
    """`shape` is where its type stands, or "" where it is made here, from several."""

    schema: str
    source: str
    words: str
    shape: str = ""


DOCUMENTS: dict[str, Document] = {
    "plan": Document(
        schema="sdcli.plan/1", source="sdcli plan --json", shape="sdcli.plan.plan:Plan",
        words="What would be drawn, with which setup, and what it needs.",
    ),
    "report": Document(
        schema="sdcli.report/1", source="sdcli generate --json, sdcli runs merge --json, report.json",
        words="What a run did: images, times, memory, fallbacks.",
    ),
    "json-lines": Document(
        schema="", source="sdcli generate --json-lines", words="One image, as in the report; one object a line.",
    ),
    "run": Document(
        schema="sdcli.run/1", source="run.jsonl", shape="sdcli.record.lines:Line",
        words="The journal of a run; each line is one of these objects.",
    ),
    "image": Document(
        schema="sdcli.image/1", source="images", shape="sdcli.record.metadata.own:ImageRecord",
        words="What is kept in an image, to draw it again.",
    ),
    "runs": Document(
        schema="sdcli.runs/1", source="sdcli runs --json", shape="sdcli.cli.runs:Runs",
        words="The runs that left records, and how far each came.",
    ),
    "sweep": Document(
        schema="sdcli.sweep/1", source="sdcli generate --sweep", shape="sdcli.explore.cells:Sweep",
        words="What a sweep drew, in grid-RUN.json beside the images: its axes and cells.",
    ),
    "verify": Document(
        schema="sdcli.verify/1", source="sdcli verify IMAGE --json", shape="sdcli.record.verdict:Verdicts",
        words="Whether images are what their settings draw.",
    ),
    "diff": Document(
        schema="sdcli.diff/1", source="sdcli diff A B --json", shape="sdcli.cli.diff:ImageDiff",
        words="In which settings and pixels two images differ.",
    ),
    "meta": Document(
        schema="sdcli.meta/1", source="sdcli meta show FILE --json", shape="sdcli.cli.meta:Shown",
        words="The settings in images, of whichever program.",
    ),
    "meta-strip": Document(
        schema="sdcli.meta-strip/1", source="sdcli meta strip FILE --json", shape="sdcli.cli.meta:Stripped",
        words="The copies without metadata.",
    ),
    "upscale": Document(
        schema="sdcli.upscale/1", source="sdcli upscale --json", shape="sdcli.record.enlarged:Report",
        words="The images that were enlarged.",
    ),
    "bench": Document(
        schema="sdcli.bench/1", source="sdcli bench --json, --save FILE", shape="sdcli.bench.result:BenchResult",
        words="Every measurement and its statistics.",
    ),
    "bench-compare": Document(
        schema="sdcli.bench-compare/1", source="sdcli bench compare --json", shape="sdcli.bench.comparison:Comparison",
        words="Two results of bench: faster, slower or cannot tell.",
    ),
    "unet": Document(
        schema="sdcli.unet/1", source="sdcli inspect-unet --json", shape="sdcli.inspect.facts:UnetDocument",
        words="A UNet's layers, sizes, compute and skips.",
    ),
    "unet-diff": Document(
        schema="sdcli.unet-diff/1", source="sdcli inspect-unet --diff OTHER --json",
        shape="sdcli.inspect.diff:DiffDocument", words="How two UNets differ.",
    ),
    "lora": Document(
        schema="sdcli.lora/1", source="sdcli inspect-unet --lora FILE --json", shape="sdcli.inspect.lora:LoraDocument",
        words="What a LoRA touches.",
    ),
    "models": Document(
        schema="sdcli.models/1", source="sdcli models --json", shape="sdcli.cli.models:Listing",
        words="The models and adapters on this machine.",
    ),
    "models-check": Document(
        schema="sdcli.models-check/1", source="sdcli models check MODEL --json", shape="sdcli.models.check:Check",
        words="Whether a model's files are whole.",
    ),
    "models-rm": Document(
        schema="sdcli.models-rm/1", source="sdcli models rm NAME --json", shape="sdcli.cli.models:Removal",
        words="What was removed.",
    ),
    "pull": Document(
        schema="sdcli.pull/1", source="sdcli pull NAME --json", shape="sdcli.cli.pull:Pulled",
        words="What was downloaded, and where it is.",
    ),
    "samplers": Document(
        schema="sdcli.samplers/1", source="sdcli samplers --json", shape="sdcli.request.samplers:Samplers",
        words="The samplers and their names in other programs.",
    ),
    "presets": Document(
        schema="sdcli.presets/1", source="sdcli presets --json", shape="sdcli.cli.presets:Presets",
        words="The named sets of settings.",
    ),
    "config": Document(
        schema="sdcli.config/1", source="sdcli config show --json", shape="sdcli.cli.config:SettingsInForce",
        words="The settings, and where each comes from.",
    ),
    "doctor": Document(
        schema="sdcli.doctor/1", source="sdcli doctor --json", shape="sdcli.cli.doctor:Diagnosis",
        words="Devices, versions, models, disk, problems.",
    ),
    "error": Document(
        schema="", source="any command with --json", words="What is printed instead when a command fails.",
    ),
}  # fmt: skip


def schema_of(name: str) -> Schema:
    document = DOCUMENTS[name]
    return Shapes(_known()).document(document.schema or f"sdcli.{name}", _shape(name, document))


def _shape(name: str, document: Document) -> Any:
    if name == "error":
        return _failure()
    if name == "report":
        return _report()
    if name == "json-lines":
        return _report_image(str | None)
    module, _, shape = document.shape.partition(":")
    return getattr(importlib.import_module(module), shape)


class Nothing(TypedDict):
    """Where nothing could be planned."""


def _known() -> dict[str, Any]:
    """What is a plain mapping where it is written has a shape all the same, by its key."""
    from sdcli.errors import ErrorObject
    from sdcli.events import Degraded
    from sdcli.plan.plan import Setup

    return {
        "error": ErrorObject,
        "degraded": Degraded,
        "plan": _kept_plan() | Nothing,
        "setup": Setup | Nothing,
    }


def _kept_plan() -> Any:
    """The plan as journals and reports keep it."""
    from sdcli.plan.plan import Plan

    keys = {key: hint for key, hint in keys_of(Plan).items() if key != "ways"}
    return _object("KeptPlan", keys, "The plan without `ways`, the table that served the choice.", Plan)


def _report() -> Any:
    from sdcli.record.report import Report

    image: Any = _report_image(NotRequired[str | None])
    words = "What a run did. `folder` and the `path` of each image stand on stdout only, not in the file."
    return _object("Report", {**keys_of(Report), "images": typing.cast(Any, tuple)[image, ...]}, words, Report)


def _report_image(path: Any) -> Any:
    from sdcli.record.entries import Image
    from sdcli.request.request import Job

    own = {key: hint for key, hint in keys_of(Image).items() if key != "job"}
    jobs = {key: hint | None for key, hint in keys_of(Job).items() if key not in own}
    words = "An image, with the fields of its job beside its own; they are null if that is not known."
    return _object("ReportImage", {**own, "path": path, **jobs}, words)


def _failure() -> Any:
    from sdcli.errors import ErrorObject

    return _object("Failure", {"error": ErrorObject}, "A command that failed, with nothing else to say.")


def _object(name: str, keys: Mapping[str, Any], words: str | None, of: Any = None) -> Any:
    """A typed dictionary made of what other types have."""
    if of is not None:
        number = next(field.default for field in dataclasses.fields(of) if field.name == "schema")
        keys = {**keys, "schema": typing.Literal[number]}
    make: Any = TypedDict
    made = make(name, dict(keys))
    made.__doc__ = words
    return made
