"""OpenVINO: what is drawn is what the setup says, diffusers' values within rounding, and without torch's weights."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from draw_samples import HARDWARE, all_but, events_of, request_for
from test_draw_packed import called
from torch import Tensor, nn

from sdcli import data
from sdcli.draw import compiled, graphs, load, place
from sdcli.draw.graphs import Graph
from sdcli.errors import CannotWrite
from sdcli.events import Decoded
from sdcli.machine.folders import cache_folder
from sdcli.models import resolve
from sdcli.models.model import Model
from sdcli.plan.plan import Adapter, Plan, Setup
from sdcli.plan.planner import make_plan

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INSTALLED = replace(HARDWARE, openvino=True)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def kept(converted: Path, own_folders: Path) -> None:
    """Graphs of tiny models that tests before this one made, for a test that is not about making one: a conversion
    takes longer than all that is computed with it."""
    folder = cache_folder() / "openvino"
    folder.parent.mkdir()
    folder.symlink_to(converted)


def loaded(model: Model, part: str, dtype: str = "fp32", execution: str = "openvino") -> Any:
    components = place.Components(model, Setup(dtype=dtype, execution=execution))
    list(components.ready((part,)))
    with components.use(part) as module:
        return module


def plan_for(path: Path, execution: str = "openvino", **asked: Any) -> Plan:
    pins = {"dtype": "fp32", "execution": execution} | dict(asked.pop("pins", {}))
    return make_plan(request_for(pins=pins, **asked), resolve.at(path), INSTALLED, {})


def pixels(plan: Plan) -> list[Tensor]:
    images = events_of(plan, Decoded)
    assert {image.setup.execution for image in images} == {plan.setup.execution}
    return [torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).int() for image in images]


def made() -> set[str]:
    """The graphs there are, by their folders' names."""
    return {path.name for path in (cache_folder() / "openvino").iterdir()}


def graph(model: Model, name: str, dtype: str = "fp32") -> Graph:
    key = graphs._key(name, model.components[name], (), DTYPES[dtype])
    return Graph(cache_folder() / "openvino" / key)


def decoded(model: Model, dtype: str = "fp32", execution: str = "openvino") -> Tensor:
    channels = model.components["vae"].config["latent_channels"]
    latents = torch.randn(1, channels, 12, 8, generator=torch.Generator().manual_seed(3))
    vae = loaded(model, "vae", dtype, execution)
    assert vae.dtype == DTYPES[dtype]
    result: Tensor = vae.decode(latents.to(DTYPES[dtype]), return_dict=False)[0]
    return result.float()


@pytest.mark.parametrize("family", [pytest.param("sd15", marks=pytest.mark.proof), "sdxl"])
def test_a_unet_computes_what_diffusers_does_within_rounding(
    family: str, tiny_folders: dict[str, Path], kept: None
) -> None:
    model = resolve.at(tiny_folders[family])
    exact = called(loaded(model, "unet", "fp32", "eager"), model)
    assert (called(loaded(model, "unet"), model) - exact).abs().max() <= 1e-5 * exact.abs().max()
    own, theirs = (called(loaded(model, "unet", "bf16", how), model) for how in ("openvino", "eager"))
    assert (own - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("family", all_but("sd2"))
def test_a_vae_decodes_what_diffusers_does_within_rounding(
    family: str, tiny_folders: dict[str, Path], kept: None
) -> None:
    model = resolve.at(tiny_folders[family])
    exact = decoded(model, "fp32", "eager")
    assert (decoded(model) - exact).abs().max() <= 1e-5 * exact.abs().max()
    own, theirs = (decoded(model, "bf16", how) for how in ("openvino", "eager"))
    assert (own - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("family", all_but("sd15"))
def test_a_run_draws_the_eager_image_within_rounding_and_the_same_again(
    family: str, tiny_folders: dict[str, Path], kept: None
) -> None:
    path = tiny_folders[family]
    (first,), (again,) = pixels(plan_for(path)), pixels(plan_for(path))
    assert torch.equal(first, again)
    (eager,) = pixels(plan_for(path, "eager"))
    assert (first - eager).abs().max() <= 1


def test_the_built_in_model_is_drawn_too() -> None:
    path = data.builtin_model()
    assert path is not None
    (own,), (eager,) = (pixels(plan_for(path, how, width=256, height=256, steps=2)) for how in ("openvino", "eager"))
    assert (own - eager).abs().max() <= 1


def test_all_calls_go_through_openvino_and_no_layer_of_torch_is_alive(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    calls: dict[str, int] = {}
    call, fill = compiled.Compiled.call, load.fill

    def counted(self: compiled.Compiled, given: Any) -> Tensor:
        gc.collect()
        large = [part for part in alive if any(weight.device.type != "meta" for weight in part.parameters())]
        assert not large, "weights of diffusers' module are in memory while OpenVINO computes"
        calls[type(self).__name__] = calls.get(type(self).__name__, 0) + 1
        return call(self, given)

    def filled(module: nn.Module, stored: Any, name: str, **how: Any) -> int:
        if name in ("unet", "vae"):
            alive.add(module)
        return fill(module, stored, name, **how)

    monkeypatch.setattr(compiled.Compiled, "call", counted)
    monkeypatch.setattr(load, "fill", filled)
    plan = plan_for(tiny_folders["sdxl"], num_images=2, seeds=(1, 2))
    assert len(pixels(plan)) == 2
    assert calls == {"Unet": 8, "Decoder": 2}


def test_the_second_run_loads_no_weights_of_the_unet_into_torch(
    tiny_folders: dict[str, Path], kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(tiny_folders["sd15"])
    first, fill = pixels(plan), load.fill

    def only_text(module: nn.Module, stored: Any, name: str, **how: Any) -> int:
        assert name.startswith("text_encoder")
        return fill(module, stored, name, **how)

    monkeypatch.setattr(load, "fill", only_text)
    assert torch.equal(pixels(plan)[0], first[0])


def test_one_graph_serves_every_size_number_of_images_and_length_of_prompts(
    tiny_folders: dict[str, Path], kept: None
) -> None:
    path = tiny_folders["sd15"]
    pixels(plan_for(path, steps=1))
    before = made()
    for asked in (
        {"width": 72, "height": 128}, {"num_images": 2, "seeds": (1, 2), "batch_size": 2}, {"guidance": 1.0},
        {"prompts": ("a cat " * 60,)}, {"pins": {"guidance": "in-turn"}},
    ):  # fmt: skip
        own, eager = (pixels(plan_for(path, how, steps=2, **dict(asked))) for how in ("openvino", "eager"))
        assert len(own) == len(eager)
        assert all((a - b).abs().max() <= 1 for a, b in zip(own, eager, strict=True)), asked
    assert made() == before
    assert all(graph(resolve.at(path), name).whole() for name in ("unet", "vae"))


def test_tiles_are_decoded_as_by_diffusers(tiny_folders: dict[str, Path], kept: None) -> None:
    asked: dict[str, Any] = {"width": 320, "height": 64, "steps": 1, "pins": {"vae": "tile-256"}}
    (own,), (eager,) = (pixels(plan_for(tiny_folders["sd15"], how, **asked)) for how in ("openvino", "eager"))
    assert (own - eager).abs().max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_on_disk_are_the_files(dtype: str, tiny_folders: dict[str, Path], kept: None) -> None:
    """They are written from the memory of the module that was converted."""
    model = resolve.at(tiny_folders["sd15"])
    loaded(model, "unet", dtype)
    files = graph(model, "unet", dtype)
    written = graphs.openvino().Core().read_model(str(files.steps), str(files.weights))
    constants = {part.get_friendly_name(): part for part in written.get_ops() if part.get_type_name() == "Constant"}
    plain = loaded(model, "unet", dtype, "eager")
    for name, weight in plain.named_parameters():
        kept = torch.from_numpy(
            constants[f"self.unet.{name}"].data.copy().view("int16" if dtype == "bf16" else "float32")
        )
        own = weight.detach().contiguous()
        assert torch.equal(kept, own.view(torch.int16) if dtype == "bf16" else own), name


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_graph_is_made_again(damage: str, tiny_folders: dict[str, Path]) -> None:
    model = resolve.at(tiny_folders["sd15"])
    first, files = decoded(model), graph(model, "vae")
    weights, steps = files.weights.read_bytes(), files.steps.read_bytes()
    if damage == "cut":
        files.weights.write_bytes(weights[:-7])
    elif damage == "changed":
        files.steps.write_bytes(steps.replace(b"Convolution", b"Convolutiom", 1))
    else:
        files.steps.unlink()
    assert not files.whole()
    assert torch.equal(decoded(model), first)
    assert files.whole() and files.weights.read_bytes() == weights


def test_a_conversion_that_fails_halfway_leaves_nothing(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve.at(tiny_folders["sd15"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "_facts", full)  # the last thing that is written
        with pytest.raises(CannotWrite) as failed:
            decoded(model)
    assert failed.value.hint == "the same command with --pin execution=packed"
    assert made() == set()
    assert decoded(model).isfinite().all()


def test_other_weights_dtypes_and_loras_have_other_graphs(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    part = resolve.at(tiny_folders["sd15"]).components["unet"]
    lora = Adapter(name="ink", sha256="a" * 64, scale=0.5)
    copy = tmp_path / "other.safetensors"
    copy.write_bytes(Path(part.files[0]).read_bytes())
    keys = {
        graphs._key("unet", part, (), torch.float32),
        graphs._key("unet", part, (), torch.bfloat16),
        graphs._key("unet", part, (lora,), torch.float32),
        graphs._key("unet", part, (replace(lora, scale=0.6),), torch.float32),
        graphs._key("unet", replace(part, files=(str(copy),)), (), torch.float32),
        graphs._key("unet", replace(part, random=True, files=()), (), torch.float32),
    }
    assert len(keys) == 6
    before = graphs._key("unet", replace(part, files=(str(copy),)), (), torch.float32)
    os.utime(copy, ns=(0, 0))
    assert graphs._key("unet", replace(part, files=(str(copy),)), (), torch.float32) != before


def test_graphs_that_were_not_used_for_longest_make_room(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = (resolve.at(tiny_folders[family]) for family in ("sd15", "sd2"))
    loaded(older, "vae")
    old = graph(older, "vae")
    os.utime(old.folder, (0, 0))
    monkeypatch.setattr(graphs, "MOST_BYTES", 1)
    loaded(newer, "vae")
    assert not old.folder.exists() and graph(newer, "vae").whole()


def test_nothing_of_openvinos_sends_usage_data(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from sdcli.draw import graphs; graphs.openvino(); "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr
    assert list(tmp_path.iterdir()) == []  # where it would keep who sends


def test_a_vae_that_overflows_is_replaced_by_one_in_fp32_for_that_image(
    tiny_folders: dict[str, Path], kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(tiny_folders["sd15"], pins={"dtype": "bf16", "vae-dtype": "same"})
    whole = compiled.Decoder.forward
    monkeypatch.setattr(compiled.Decoder, "forward", lambda self, latents: whole(self, latents) * torch.inf)
    (image,) = events_of(plan, Decoded)
    assert image.retried == "not finite in bfloat16"
