"""The engine with reference images: in every placement, on a GPU, out of memory, each image encoded once."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from draw_samples import HARDWARE, out_of_memory_at, request_for
from PIL import Image
from test_draw_control_run import pixels

from scripts import make_checkpoint
from sdcli.asking import controls, references
from sdcli.draw import local
from sdcli.draw.reference import References
from sdcli.events import Decoded, Denoised, Encoded, EncodedImage, Loaded, Step
from sdcli.images.read import InputImage, look
from sdcli.machine import survey
from sdcli.machine.hardware import Hardware
from sdcli.models import resolve
from sdcli.plan.legality import legal
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.request.jobs import make_jobs
from sdcli.request.request import Control, Job, Reference
from tests.pretend_gpu import device, pretend


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("adapters")
    make_checkpoint.write_image_encoder(root / "image_encoder")
    made = {}
    for family, kind in (("sd15", "plain"), ("sd15", "plus"), ("sdxl", "plus")):
        file = root / f"{family}-{kind}.safetensors"
        made[f"{family} {kind}"] = str(make_checkpoint.write_ip_adapter(file, family, kind, tiny=True))
    make_checkpoint.write_controlnet_folder(root / "net", "sd15", tiny=True)
    return made | {"net": str(root / "net")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[InputImage]:
    """The last is a mask."""
    root, found = tmp_path_factory.mktemp("photos"), []
    for seed in range(3):
        values = numpy.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=numpy.uint8)
        if seed == 2:
            values[:] = 0
            values[:, :40] = 255
        Image.fromarray(values).save(root / f"{seed}.png")
        found.append(look(root / f"{seed}.png"))
    return found


def plan_for(
    path: Path, adapter: str, used: Sequence[Reference], hardware: Hardware = HARDWARE,
    each: Sequence[Sequence[Reference]] = (), **asked: Any,
) -> Plan:  # fmt: skip
    """As the command line makes it. `each`: of every image, where they differ."""
    pins = {"dtype": "fp32"} | asked.pop("pins", {})
    request = request_for(**{
        "width": 96, "pins": pins, "reference": tuple(used), "reference_model": adapter,
        "reference_mask": tuple(one.mask for one in used if one.mask), **asked,
    })  # fmt: skip
    jobs: tuple[Job, ...] = make_jobs(request)
    if each:
        jobs = tuple(replace(job, references=tuple(own)) for job, own in zip(jobs, each, strict=True))
    jobs, model, nets = controls.gather(jobs, resolve.at(path), ())
    model, seen = references.gather(request, jobs, model, ())
    return make_plan(request, model, hardware, {}, jobs=jobs, adapters=(*nets, *seen))


def on_a_gpu(path: Path, adapter: str, used: Sequence[Reference], **asked: Any) -> Plan:
    plan = plan_for(path, adapter, used, survey.choose("cuda", survey.look()), **asked)
    return replace(plan, setup=replace(plan.setup, threads=1))


WAYS: dict[str, dict[str, Any]] = {
    "one": {}, "two": {}, "masked": {}, "steered": {}, "from an image": {"strength": 0.75},
    "twice": {"hires": 1.5, "hires_steps": 2},
}  # fmt: skip


def asked(adapters: dict[str, str], photos: list[InputImage], how: str) -> tuple[list[Reference], dict[str, Any]]:
    first, given = Reference(image=photos[0], weight=0.9), dict(WAYS[how])
    used = [first, Reference(image=photos[1], weight=0.9)] if how in ("two", "masked") else [first]
    if how == "masked":
        used[0] = replace(first, mask=photos[2])
    if how == "steered":
        given["control"] = (Control(net=adapters["net"], image=photos[1]),)
    if how == "from an image":
        given["image"] = (photos[1],)
    return used, given


def test_both_models_are_components_and_part_of_the_setup(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage]
) -> None:
    plan = plan_for(tiny_folders["sd15"], adapters["sd15 plain"], [Reference(image=photos[0])])
    assert [(one.kind, one.name) for one in plan.setup.adapters] == [
        ("ip-adapter", "sd15-plain"), ("image-encoder", "unknown")
    ]  # fmt: skip
    assert all(len(one.sha256) == 64 for one in plan.setup.adapters)
    events = list(local.run(plan))
    assert {"image_encoder", "ip_adapter"} <= {event.component for event in events if isinstance(event, Loaded)}
    assert [event.stage for event in events if isinstance(event, EncodedImage)] == ["encode-reference"]
    assert [phase.name for phase in plan.footprint.phases] == [
        "load", "encode", "encode-reference", "denoise", "decode"
    ]  # fmt: skip
    plain = plan_for(tiny_folders["sd15"], adapters["sd15 plain"], [])
    assert plan.footprint.device_peak > plain.footprint.device_peak and plain.setup.adapters == ()


@pytest.mark.parametrize(
    ("choices", "said"),
    [({"execution": "compile"}, "compiled by itself"), ({"execution": "openvino"}, "reference images"),
     ({"attention": "sliced"}, "reference images")],
)  # fmt: skip
def test_ways_that_cannot_see_references_are_illegal(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage], choices: dict[str, str],
    said: str,
) -> None:  # fmt: skip
    plan = plan_for(tiny_folders["sd15"], adapters["sd15 plain"], [Reference(image=photos[0])])
    reason = legal(replace(plan.setup, **choices), plan.hardware, plan.model)  # type: ignore[arg-type]
    assert reason is not None and said in reason


@pytest.mark.parametrize("how", WAYS)
def test_an_image_of_a_batch_is_the_one_drawn_alone(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage], how: str
) -> None:
    used, given = asked(adapters, photos, how)
    given["sampler"] = "Euler a"
    where = tiny_folders["sd15"], adapters["sd15 plus"]
    together = pixels(plan_for(*where, used, seeds=(7, 8), batch_size=2, batch_invariant=True, **given))
    alone = [pixels(plan_for(*where, used, seeds=(seed,), **given))[0] for seed in (7, 8)]
    assert together == alone
    assert alone[0] != pixels(plan_for(*where, [], seeds=(7,), **given))[0]


def test_images_of_a_batch_may_have_references_of_their_own(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage]
) -> None:
    where = tiny_folders["sd15"], adapters["sd15 plain"]
    each = [[Reference(image=photo)] for photo in photos[:2]]
    plan = plan_for(*where, each[0], seeds=(7, 8), batch_size=2, batch_invariant=True, each=each)
    assert plan.batches == ((0, 1),)
    assert pixels(plan) == [pixels(plan_for(*where, own, seeds=(7 + n,)))[0] for n, own in enumerate(each)]


def test_an_image_is_encoded_once_whatever_is_drawn_from_it(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli.draw import reference

    seen: list[str] = []
    real_encoded, real_attended = reference.encoded, reference.attended
    monkeypatch.setattr(
        reference, "encoded", lambda *given, **named: seen.append("image") or real_encoded(*given, **named)
    )
    monkeypatch.setattr(reference, "attended", lambda *given: seen.append("keys") or real_attended(*given))
    used = [Reference(image=photo) for photo in photos[:2]]
    plan = plan_for(tiny_folders["sd15"], adapters["sd15 plus"], used, seeds=(7, 8, 9))
    assert len(pixels(plan)) == 3
    assert Counter(seen) == {"image": 3, "keys": 1}  # both, and none at all


@pytest.mark.parametrize("choices", [
    {"placement": "disk"}, {"placement": "drop-encoders"}, {"guidance": "in-turn"}, {"execution": "packed"},
])  # fmt: skip
@pytest.mark.parametrize(("family", "kind"), [("sdxl", "plus"), ("sd15", "plain")])
def test_every_way_of_drawing_sees_them(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage], family: str, kind: str,
    choices: dict[str, str],
) -> None:  # fmt: skip
    used = [Reference(image=photos[0], weight=0.9), Reference(image=photos[1], weight=0.5, mask=photos[2])]
    plan = plan_for(tiny_folders[family], adapters[f"{family} {kind}"], used, pins={"execution": "eager"})
    plain = pixels(plan)[0]
    other = pixels(replace(plan, setup=replace(plan.setup, **choices)))[0]  # type: ignore[arg-type]
    if "placement" in choices:
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 2


@pytest.mark.parametrize(
    ("how", "placement", "execution"),
    [*((how, "resident", "eager") for how in WAYS), ("masked", "resident", "graph"),
     *(("two", placement, "eager") for placement in ("drop-encoders", "group-offload")),
     *(pytest.param("two", placement, "eager", marks=pytest.mark.proof) for placement in ("model-offload", "disk"))],
)  # fmt: skip
def test_a_gpu_gives_the_pixels_of_the_cpu_waits_for_nothing_and_keeps_nothing(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage], how: str, placement: str,
    execution: str,
) -> None:  # fmt: skip
    used, given = asked(adapters, photos, how)
    where = tiny_folders["sd15"], adapters["sd15 plus"]
    waits, drawn = [], []
    with pretend(device("8GiB", capability="8.6")) as gpu:
        pins = {"placement": placement, "attention": "fused", "execution": execution}
        for event in local.run(on_a_gpu(*where, used, pins=pins, **given)):
            if isinstance(event, (Encoded, Step, Denoised)):
                waits.append((type(event).__name__, gpu.restart().waits))
            drawn += [event.pixels] if isinstance(event, Decoded) else []
        gc.collect()
        assert gpu.held() == 0
    steps = [seen for kind, seen in waits if kind == "Step"]
    if placement in ("resident", "drop-encoders") and how != "twice":  # a second pass begins with a step of its own
        assert all(seen <= Counter(event=1) for seen in steps[1:])
    assert drawn == pixels(plan_for(*where, used, pins={"execution": "eager", "attention": "fused"}, **given))


def test_memory_may_run_out_wherever_a_reference_is_looked_at(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage]
) -> None:
    used, given = asked(adapters, photos, "two")
    marks: dict[str, int] = {}
    with pretend(device("8GiB")) as gpu:
        plan = on_a_gpu(tiny_folders["sd15"], adapters["sd15 plus"], used, **given)
        for event in local.run(plan):
            if isinstance(event, (Encoded, EncodedImage, Denoised)):
                marks[type(event).__name__] = gpu.allocator().requests
            if isinstance(event, Decoded):
                plain = event.pixels
    first, looked, last = marks["Encoded"], marks["EncodedImage"], marks["Denoised"]
    assert first < looked < last
    for number in (first + 2, (first + looked) // 2, looked - 1, (looked + last) // 2):
        phase = out_of_memory_at(plan, number, plain)
        assert phase == ("denoise" if number > looked else "encode-reference")


def test_what_is_no_longer_needed_is_dropped(
    tiny_folders: dict[str, Path], adapters: dict[str, str], photos: list[InputImage]
) -> None:
    plan = plan_for(tiny_folders["sd15"], adapters["sd15 plus"], [Reference(image=photos[0])])
    seen = References(plan.model)
    groups = seen.needed(plan.jobs)
    from sdcli.draw.place import Components

    components = Components(plan.model, plan.setup)
    for part, work in (("image_encoder", seen.encode), ("ip_adapter", seen.attend)):
        list(components.ready([part]))
        work(components, part, groups)
    assert seen.missing(groups) == []
    seen.keep(())
    assert seen.missing(groups) == groups
