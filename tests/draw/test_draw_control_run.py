"""The engine steered by ControlNets: equal to diffusers' pipeline, in every placement, on a GPU, out of memory."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from draw_samples import HARDWARE, out_of_memory_while_drawing, request_for

from scripts import make_checkpoint
from sdcli.asking import controls
from sdcli.draw import local
from sdcli.events import Decoded, Denoised, Encoded, Loaded, Step
from sdcli.images.read import InputImage
from sdcli.machine import survey
from sdcli.machine.hardware import Hardware
from sdcli.models import resolve
from sdcli.plan.legality import legal
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.request.jobs import make_jobs
from sdcli.request.request import Control
from tests.pretend_gpu import device, pretend


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two of SD1.5 and one of SDXL."""
    root = tmp_path_factory.mktemp("nets")
    for name, family, seed in (("one", "sd15", 1), ("two", "sd15", 2), ("large", "sdxl", 3)):
        make_checkpoint.write_controlnet_folder(root / name, family, tiny=True, seed=seed)
    return {name: str(root / name) for name in ("one", "two", "large")}


def plan_for(path: Path, steering: tuple[Control, ...], hardware: Hardware = HARDWARE, **asked: Any) -> Plan:
    """As the command line makes it."""
    pins = {"dtype": "fp32"} | asked.pop("pins", {})
    request = request_for(**{"width": 96, "pins": pins, "control": steering, **asked})
    jobs, model, adapters = controls.gather(make_jobs(request), resolve.at(path), ())
    return make_plan(request, model, hardware, {}, jobs=jobs, adapters=adapters)


def on_a_gpu(path: Path, steering: tuple[Control, ...], **asked: Any) -> Plan:
    plan = plan_for(path, steering, survey.choose("cuda", survey.look()), **asked)
    return replace(plan, setup=replace(plan.setup, threads=1))


def pixels(plan: Plan) -> list[bytes]:
    return [event.pixels for event in local.run(plan) if isinstance(event, Decoded)]


def test_nets_are_components_and_part_of_the_setup(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage
) -> None:
    steering = (Control(net=nets["one"], image=photo), Control(net=nets["two"], image=photo, weight=0.5))
    plan = plan_for(tiny_folders["sd15"], steering)
    assert [(one.kind, one.name) for one in plan.setup.adapters] == [("controlnet", "one"), ("controlnet", "two")]
    assert [(one.net, one.part) for one in plan.jobs[0].controls] == [("one", "controlnet"), ("two", "controlnet_2")]
    assert all(len(one.sha256) == 64 for one in plan.setup.adapters)
    loaded = [event.component for event in local.run(plan) if isinstance(event, Loaded)]
    assert {"controlnet", "controlnet_2"} <= set(loaded)
    plain = plan_for(tiny_folders["sd15"], ())
    assert plan.footprint.device_peak > plain.footprint.device_peak and plain.setup.adapters == ()


@pytest.mark.parametrize("execution", ["openvino"])
def test_a_unet_that_was_converted_cannot_be_steered(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage, execution: str
) -> None:
    plan = plan_for(tiny_folders["sd15"], (Control(net=nets["one"], image=photo),))
    reason = legal(replace(plan.setup, execution=execution), plan.hardware, plan.model)
    assert reason is not None and "ControlNets" in reason


STEERED: dict[str, dict[str, Any]] = {
    "one": {}, "two with windows": {}, "guessing": {"guess_mode": True}, "from an image": {"strength": 0.75},
    "twice": {"hires": 1.5, "hires_steps": 2}, "canny": {"control_from": "canny"},
}  # fmt: skip


def asked(nets: dict[str, str], photo: InputImage, how: str) -> tuple[tuple[Control, ...], dict[str, Any]]:
    first = Control(net=nets["one"], image=photo, weight=1.2)
    more = (Control(net=nets["two"], image=photo, weight=0.7, start=0.25, end=0.75),)
    given = dict(STEERED[how])
    if how == "from an image":
        given["image"] = (photo,)
    return (first, *(more if how == "two with windows" else ())), given


@pytest.mark.parametrize("how", [pytest.param(how, marks=[pytest.mark.proof] * (how == "canny")) for how in STEERED])
def test_an_image_of_a_batch_is_the_one_drawn_alone(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage, how: str
) -> None:
    steering, given = asked(nets, photo, how)
    given["sampler"] = "Euler a"
    together = pixels(
        plan_for(tiny_folders["sd15"], steering, seeds=(7, 8), batch_size=2, batch_invariant=True, **given)
    )
    alone = [pixels(plan_for(tiny_folders["sd15"], steering, seeds=(seed,), **given))[0] for seed in (7, 8)]
    assert together == alone
    assert (
        alone[0]
        != pixels(
            plan_for(tiny_folders["sd15"], (), seeds=(7,), **{**given, "guess_mode": False, "control_from": "none"})
        )[0]
    )


@pytest.mark.parametrize("choices", [
    {"placement": "disk"}, {"placement": "drop-encoders"}, {"guidance": "in-turn"}, {"execution": "packed"},
    {"attention": "sliced"},
])  # fmt: skip
def test_every_way_of_drawing_is_steered(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage, choices: dict[str, str]
) -> None:
    plan = plan_for(tiny_folders["sdxl"], (Control(net=nets["large"], image=photo),))
    plain = pixels(plan)[0]
    other = pixels(replace(plan, setup=replace(plan.setup, **choices)))[0]  # type: ignore[arg-type]
    if "placement" in choices:
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 2


@pytest.mark.parametrize(
    ("how", "placement"),
    [("guessing", "resident"), ("twice", "resident"), ("two with windows", "group-offload"),
     ("two with windows", "disk"),
     *(pytest.param(how, "resident", marks=pytest.mark.proof) for how in STEERED if how not in ("guessing", "twice")),
     *(pytest.param("two with windows", where, marks=pytest.mark.proof)
       for where in ("drop-encoders", "model-offload"))],
)  # fmt: skip
def test_a_gpu_gives_the_pixels_of_the_cpu_waits_for_nothing_and_keeps_nothing(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage, how: str, placement: str
) -> None:
    steering, given = asked(nets, photo, how)
    waits, drawn = [], []
    with pretend(device("8GiB", capability="8.6")) as gpu:
        pins = {"placement": placement, "attention": "fused", "execution": "eager"}
        for event in local.run(on_a_gpu(tiny_folders["sd15"], steering, pins=pins, **given)):
            if isinstance(event, (Encoded, Step, Denoised)):
                waits.append((type(event).__name__, gpu.restart().waits))
            drawn += [event.pixels] if isinstance(event, Decoded) else []
        gc.collect()
        assert gpu.held() == 0
    steps = [seen for kind, seen in waits if kind == "Step"]
    if placement in ("resident", "drop-encoders") and how != "twice":  # a second pass begins with a step of its own
        assert all(seen <= Counter(event=1) for seen in steps[1:])
    pins = {"execution": "eager", "attention": "fused"}
    assert drawn == pixels(plan_for(tiny_folders["sd15"], steering, pins=pins, **given))


def test_memory_may_run_out_while_steered(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage
) -> None:
    steering, given = asked(nets, photo, "two with windows")
    with pretend(device("8GiB")):
        plan = on_a_gpu(tiny_folders["sd15"], steering, **given)
    out_of_memory_while_drawing(plan)


@pytest.mark.parametrize(
    ("guidance", "how"),
    [
        ("batched", "two with windows"), ("in-turn", "ends"),
        *(
            pytest.param(guidance, how, marks=pytest.mark.proof)
            for guidance in ("batched", "in-turn")
            for how in ("one", "two with windows", "begins", "ends", "guessing", "twice")
            if (guidance, how) not in (("batched", "two with windows"), ("in-turn", "ends"))
        ),
    ],
)  # fmt: skip
def test_a_captured_unet_is_steered_to_the_same_pixels_by_one_graph(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage, how: str, guidance: str
) -> None:
    """Calls in which nothing acts add zeros; where a net acts only later, the graph is captured once more."""
    steering, given = asked(nets, photo, how if how in STEERED else "one")
    window = {"ends": (0.0, 0.5), "begins": (0.5, 1.0)}.get(how, (0.0, 1.0))
    steering = (replace(steering[0], start=window[0], end=window[1]), *steering[1:])
    with pretend(device("8GiB", capability="8.6")) as gpu:
        eager, graph = (
            on_a_gpu(
                tiny_folders["sd15"],
                steering,
                pins={"execution": execution, "guidance": guidance},
                seeds=(7, 8),
                **given,
            )
            for execution in ("eager", "graph")
        )
        expected = pixels(eager)
        gpu.restart()
        assert pixels(graph) == expected and len(expected) == 2
        assert gpu.traffic.launches["replay"] == sum(
            (2 if guidance == "in-turn" else 1) * job.all_calls for job in graph.jobs
        )
        gc.collect()
        assert gpu.held() == 0
