"""What explains an image that differs: everything in its record that moves a pixel, and what a file says twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sdcli import schema
from sdcli.images.read import InputImage
from sdcli.plan.plan import Adapter, Setup
from sdcli.record.metadata import a1111, differing
from sdcli.record.metadata.own import BatchPosition, ImageRecord, RecordedModel
from sdcli.record.verdict import explanations
from sdcli.request.request import Control, Job, Reference, Refined, Repaint, SecondPass, Sides, Start

PHOTO = InputImage(name="photo.png", width=64, height=64, sha256="a" * 64)
JOB = Job(
    index=0, prompt="a (cat:1.2)", negative_prompt="dogs", seed=7, steps=20, unet_calls=20, guidance=7.0, width=64,
    height=64, sampler="Euler a", clip_skip=2,
    start=Start(
        image=PHOTO, strength=0.123456789,
        repaint=Repaint(mask=PHOTO, padding=8, content="noise", outpaint=Sides(left=8)),
    ),
    controls=(Control(net="canny", image=PHOTO, shows="canny"),),
    references=(Reference(image=PHOTO, mask=PHOTO),),
    second=SecondPass(scale=2, width=128, height=128, steps=9, strength=0.4, upscaler="lanczos", unet_calls=9),
)  # fmt: skip
REFINED = Job(
    index=0, prompt="a cat", negative_prompt="", seed=7, steps=20, unet_calls=16, guidance=7.0, width=64, height=64,
    sampler="Euler", refined=Refined(model="refiner", share=0.8, steps=4, unet_calls=4),
)  # fmt: skip
# Not drawn with: where it stands, what follows from the rest, and of an image all but its content.
NO_SAY = {"index", "id", "unet_calls", "name"}
FOLLOWS = {"second.width", "second.height", "refined.steps"}


def record_of(job: Job) -> ImageRecord:
    lora = Adapter(name="ink", sha256="b" * 64, scale=0.8, tensors_sha256="c" * 64)
    return ImageRecord(
        version="0.1.0", job=job, setup=Setup(adapters=(lora,)), scheduler={"_class_name": "Euler", "beta_end": 0.01},
        model=RecordedModel(name="tiny", hash="0123456789", weights={"unet": "d" * 16, "vae": "e" * 16}),
        environment={"torch": "2.0", "device": "a CPU", "python": "3.11"},
    )  # fmt: skip


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        yield at
        return
    for key, below in inside:
        yield from leaves(below, (*at, key))


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else f"{value}x"


def altered(record: ImageRecord, path: tuple[Any, ...]) -> ImageRecord:
    data = schema.to_json(record)
    within = data["job"]
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = other(within[path[-1]])
    return schema.from_json(ImageRecord, json.loads(json.dumps(data)))


@pytest.mark.parametrize("job", [JOB, REFINED], ids=["from an image", "refined"])
def test_whatever_is_altered_in_a_job_is_a_difference(job: Job) -> None:
    record, tried = record_of(job), 0
    for path in leaves(schema.to_json(job)):
        within: Any = schema.to_json(job)
        for key in path:
            within = within[key]
        is_image_s_side = path[-1] in ("width", "height") and len(path) > 1
        if within is None or path[-1] in NO_SAY or ".".join(map(str, path)) in FOLLOWS or is_image_s_side:
            continue
        tried += 1
        assert list(differing.moving(record, altered(record, path))), path
        assert list(differing.moving(altered(record, path), record)), path
    assert tried > 10 and not list(differing.moving(record, record))


@pytest.mark.parametrize("job", [JOB, REFINED], ids=["from an image", "refined"])
def test_a_record_and_the_text_made_of_it_do_not_contradict_each_other(job: Job) -> None:
    record = record_of(job)
    text = a1111.write(a1111.infotext(job, record.setup, record.model, record.version))
    assert list(explanations(record, record, text)) == []
    for field, altered_text in (
        ("rng", text.replace("RNG: CPU", "RNG: NV")), ("prompt", text.replace("cat", "dog")),
        ("steps", text.replace("Steps: 20", "Steps: 21")),
    ):  # fmt: skip
        (found,) = explanations(record, record, altered_text)
        assert found.field == field and "in one place" in found.then


def test_what_is_not_known_of_a_model_or_a_version_explains_nothing() -> None:
    record = record_of(REFINED)
    bare = schema.to_json(record) | {"environment": {}, "model": {"name": "another"}}
    assert list(differing.moving(schema.from_json(ImageRecord, bare), record)) == []
    known = schema.to_json(record) | {"environment": {"torch": "3.0", "python": "3.12"}}
    assert [row.name for row in differing.moving(record, schema.from_json(ImageRecord, known))] == ["environment.torch"]


def test_a_job_that_its_own_batch_knows_otherwise_was_altered() -> None:
    record = record_of(REFINED)
    data = schema.to_json(record)
    data["batch"] = schema.to_json(BatchPosition(size=2, position=0, members=(REFINED, REFINED)))
    data["job"]["seed"] = 8
    batched = schema.from_json(ImageRecord, data)
    (found,) = explanations(batched, batched, None)
    assert (found.field, found.then) == ("seed", "8 in one place, 7 in another")


def test_of_a_scheduler_of_another_kind_only_the_kind_is_named() -> None:
    record = record_of(REFINED)
    data = schema.to_json(record) | {"scheduler": {"_class_name": "DDIM", "beta_end": 0.5, "clip_sample": False}}
    assert [row.name for row in differing.moving(record, schema.from_json(ImageRecord, data))] == ["scheduler"]
