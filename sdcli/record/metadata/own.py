"""Our own chunk, `sdcli.image/1`: everything that made the image, and nothing about who made it or where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdcli import reading
from sdcli import schema as translate
from sdcli.errors import BadFile
from sdcli.models import hub_name
from sdcli.plan.plan import Adapter, Plan, Setup
from sdcli.record import documents
from sdcli.request.request import PER_IMAGE, Job, Refined, Refiner, SecondPass, Start
from sdcli.request.tags import lora_weight
from sdcli.terminal import size_text

NAME, NEWEST = "sdcli.image", 1
LIMIT = 65_536


@dataclass(frozen=True, kw_only=True)
class RecordedModel:
    name: str
    revision: str | None = None
    hash: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)  # a fingerprint of each component's


@dataclass(frozen=True, kw_only=True)
class BatchPosition:
    """The image's position in its batch, and the other jobs, since a batch moves pixels slightly. One that was drawn as
    if alone is recorded alone."""

    size: int = 1
    position: int = 0
    members: tuple[Job, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EnlargedBy:
    """What `sdcli upscale` did to an image that was drawn: its pixels then, and the model that went over them."""

    upscaler: str
    sha256: str
    times: int
    tile: int
    dtype: str
    width: int
    height: int
    fit: str
    pixel_sha256: str


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    schema: str = f"{NAME}/{NEWEST}"
    version: str = ""
    job: Job
    setup: Setup
    model: RecordedModel
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    negative: str = ""
    batch: BatchPosition = field(default_factory=BatchPosition)
    degraded: tuple[Mapping[str, Any], ...] = ()
    enlarged: tuple[EnlargedBy, ...] = ()  # after it was drawn
    pixel_sha256: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)


def batch_position(plan: Plan, batch: int, index: int, size: int, position: int) -> BatchPosition:
    """From the plan; for prompts read as they come, which no plan lists, from the batch's events so far."""
    if plan.request.batch_invariant:
        return BatchPosition()
    indices = plan.batches[batch] if batch < len(plan.batches) else ()
    if index not in indices:
        return BatchPosition(size=size, position=position)
    members = tuple(plan.jobs[member] for member in indices) if len(indices) > 1 else ()
    return BatchPosition(size=len(indices), position=indices.index(index), members=members)


def chunk(record: ImageRecord, *, ascii_only: bool = False) -> bytes:
    return documents.dump(translate.to_json(record), ascii_only=ascii_only)


def shorter(record: ImageRecord) -> Iterator[ImageRecord]:
    """The chunk, then without the batch's other members, then without the environment too."""
    yield record
    without_members = replace(record, batch=replace(record.batch, members=()))
    yield without_members
    yield replace(without_members, environment={})


def read(text: str | bytes, where: str = "the sdcli chunk") -> ImageRecord:
    """The chunk as it was written; damaged, foreign or newer is BadFile."""
    if len(text) > LIMIT:
        raise BadFile(f"{where} is larger than {size_text(LIMIT)}")
    data = reading.read(text, where)
    documents.check_schema(data, NAME, NEWEST, where)
    return translate.from_json(ImageRecord, data, where)


def values(record: ImageRecord) -> dict[str, Any]:
    """The Request fields it fills."""
    return settings(record) | {"model": record.model.name, **_beside(record.setup)}


def settings(record: ImageRecord) -> dict[str, Any]:
    """Those of the job."""
    job = record.job
    return {
        "prompts": (job.prompt,),
        "seeds": (job.seed,),
        **{name: getattr(job, name) for name in PER_IMAGE},
        **_starting(job.start),
        **_second(job.second),
        **({"reference_layers": job.references[0].layers} if job.references else {}),
        **_refined(job.refined),
    }


def _starting(start: Start | None) -> dict[str, Any]:
    """How it starts from its image and mask, which themselves are not in it."""
    if start is None:
        return {}
    if start.guidance is not None:
        return {"image_guidance": start.guidance, "fit": start.fit}
    values: dict[str, Any] = {"strength": start.strength, "fit": start.fit}
    if (repaint := start.repaint) is not None:
        values |= {"mask_blur": repaint.blur, "masked_content": repaint.content, "outpaint": repaint.outpaint}
        if repaint.padding is not None:
            values |= {"only_masked": True, "mask_padding": repaint.padding}
    return values


def _second(second: SecondPass | None) -> dict[str, Any]:
    if second is None:
        return {}
    values: dict[str, Any] = {
        "hires": second.scale, "hires_steps": second.steps, "hires_strength": second.strength,
    }  # fmt: skip
    return values | ({"upscaler": second.upscaler} if _is_name(second.upscaler) else {})


def _refined(refined: Refined | None) -> dict[str, Any]:
    """The refiner by name, as with all that is used beside the model."""
    if refined is None or not _is_name(refined.model):
        return {}
    return {"refiner": Refiner(model=refined.model, share=refined.share)}


def _beside(setup: Setup) -> dict[str, Any]:
    """LoRAs, embeddings and the VAE by name, never by path: the reader finds where they are on this machine."""
    plain = [one for one in setup.adapters if _is_name(one.name)]
    kinds = {kind: [one for one in plain if one.kind == kind] for kind in ("lora", "embedding", "vae", "ip-adapter")}
    by_field: dict[str, Any] = {
        "lora": tuple(f"{_hub_name(one) or one.name}:{lora_weight(one.scale)}" for one in kinds["lora"]),
        "embeddings": tuple(f"{one.name}:{one.word or one.name}" for one in kinds["embedding"]),
        "vae_file": next((one.name for one in kinds["vae"]), None),
        "reference_model": next((one.name for one in kinds["ip-adapter"]), None),
    }
    return {name: value for name, value in by_field.items() if value}


def _is_name(text: str) -> bool:
    """And no path, address or flag."""
    return not re.search(r"[\\/:]|^[.~-]", text)


def _hub_name(one: Adapter) -> str:
    """Its name on the Hub, if that has a commit and a file; anything else might be taken for a path."""
    name = hub_name.parse(one.hub)
    exact = name is not None and name.file and re.fullmatch(r"[0-9a-f]{40}", name.revision or "")
    return one.hub if exact else ""
