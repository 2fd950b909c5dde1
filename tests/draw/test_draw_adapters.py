"""LoRAs in the weights, embeddings among the tokens and another VAE: against the formula, and against diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from draw_samples import HARDWARE, events_of
from safetensors.torch import save_file
from torch import Tensor

from scripts import make_checkpoint
from sdcli.draw import adapters, load
from sdcli.errors import BadFile, ModelMissing
from sdcli.events import Decoded
from sdcli.models import adapter_files, lora, resolve
from sdcli.models.lora import Layer
from sdcli.models.model import Model
from sdcli.plan.plan import Adapter
from sdcli.plan.planner import make_plan
from sdcli.request import tokenizer
from sdcli.request.request import Request

RANK = 4
FAMILIES = ("sd15", "sdxl")
Alpha = Callable[[int], float | None]  # of the layer with this number; None writes none


def layers_of(model: Model) -> list[Layer]:
    found = lora.layers({name: part.config for name, part in model.components.items() if name != "vae"})
    return sorted(set(found.values()), key=lambda layer: (layer.component, layer.name))


def named(layer: Layer, layout: str, model: Model) -> tuple[str, str, str]:
    """(module, down, up) as trainers write them; sgm is kohya's naming of the original UNet."""
    if layout == "diffusers":
        return f"{layer.component}.{layer.name}", "lora_A.weight", "lora_B.weight"
    start = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[layer.component]
    if "text_encoder_2" not in model.components:
        start = start.replace("te1", "te")
    name = layer.name
    if layout == "sgm" and layer.component == "unet":
        name = make_checkpoint.original_unet_name(f"{name}.weight", dict(model.components["unet"].config))
        name = name.removesuffix(".weight")
    return f"{start}_{name.replace('.', '_')}", "lora_down.weight", "lora_up.weight"


def write_lora(
    path: Path, model: Model, layout: str, *, alpha: Alpha = lambda number: 2.0, seed: int = 1,
    dtype: torch.dtype = torch.float32, only: Iterable[Layer] | None = None, size: float = 0.3,
) -> dict[Layer, Tensor]:  # fmt: skip
    """A random LoRA on every layer; returns what it adds to each, α/r · up·down in fp64."""
    generator = torch.Generator().manual_seed(seed)
    stored: dict[str, Tensor] = {}
    added: dict[Layer, Tensor] = {}
    for number, layer in enumerate(layers_of(model) if only is None else only):
        out, wide, *kernel = layer.shape
        down = (torch.randn((RANK, wide, *kernel), generator=generator) * size / wide**0.5).to(dtype)
        up = (torch.randn((out, RANK, *[1 for _ in kernel]), generator=generator) * size).to(dtype)
        module, down_name, up_name = named(layer, layout, model)
        stored |= {f"{module}.{down_name}": down, f"{module}.{up_name}": up}
        chosen = alpha(number)
        if chosen is not None:
            stored[f"{module}.alpha"] = torch.tensor(chosen)
        product = torch.einsum("or,r...->o...", up.double().flatten(1), down.double())
        added[layer] = product * ((RANK if chosen is None else chosen) / RANK)
    save_file(stored, path)
    return added


def asked(path: Path, scale: float = 1.0, **more: Any) -> Adapter:
    return Adapter(name=path.stem, sha256="", scale=scale, path=str(path), **more)


def weights(
    model: Model, given: Iterable[Adapter], dtype: torch.dtype = torch.float32
) -> dict[tuple[str, str], Tensor]:
    """Every weight of the model as loaded for drawing, by component and name (without `text_model.`)."""
    found: dict[tuple[str, str], Tensor] = {}
    for name, component in model.components.items():
        added = adapters.additions(name, model, given)
        filled = load.load(name, component, dtype=dtype, device="cpu", channels_last=True, added=added)
        for key, tensor in filled.module.state_dict().items():
            found[name, key.removeprefix("text_model.")] = tensor
    return found


def place_of(layer: Layer) -> tuple[str, str]:
    return layer.component, f"{layer.name.removeprefix('text_model.')}.weight"


def mixed(number: int) -> float | None:
    """Alphas as after merging LoRAs of several trainers: none, smaller, equal, larger than the rank."""
    return (None, 1.0, 4.0, 6.5)[number % 4]


# --- weights


@pytest.mark.parametrize(
    ("family", "layout", "dtype"),  # every day each two of them together, of family and layout or dtype
    [
        pytest.param(family, layout, dtype, marks=[pytest.mark.proof] * ((one + two + three) % 2))
        for one, family in enumerate(FAMILIES)
        for two, layout in enumerate(["kohya", "sgm", "diffusers"])
        for three, dtype in enumerate([torch.float32, torch.float16, torch.bfloat16])
    ],
)
def test_two_loras_with_weights_and_mixed_alphas_are_added_exactly(
    tiny_folders: dict[str, Path], family: str, layout: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """UNet and encoders, linear layers and convolutions: W + 0.8 · α/r · BA − 1.5 · α'/r · B'A' to 1e-6."""
    model = resolve.at(tiny_folders[family])
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    one = write_lora(first, model, layout, alpha=mixed, dtype=dtype)
    two = write_lora(second, model, "diffusers", alpha=lambda number: 3.0, seed=2)
    before = weights(model, ())
    after = weights(model, (asked(first, 0.8), asked(second, -1.5)))
    assert {layer.component for layer in one} == set(model.components) - {"vae"}
    assert {len(layer.shape) for layer in one} == {2, 4}
    for layer in one:
        expected = before[place_of(layer)].double() + 0.8 * one[layer] - 1.5 * two[layer]
        got = after.pop(place_of(layer))
        assert (got.double() - expected).abs().max().item() <= 1e-6, layer.shown
        assert not torch.equal(got, before[place_of(layer)])
    for place, rest in after.items():  # biases, norms, embeddings and the VAE stay as they are
        assert torch.equal(rest, before[place]), place


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_checkpoint_takes_the_same_lora_as_its_folder(
    tiny_folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    folder = resolve.at(tiny_folders[family])
    single = make_checkpoint.write_file(tmp_path / "single.safetensors", family, tiny=True)
    # a tiny checkpoint is refused by name; its weights are read through the folder's configs
    parts = {name: replace(part, files=(str(single),)) for name, part in folder.components.items()}
    path = tmp_path / "l.safetensors"
    write_lora(path, folder, "kohya")
    expected = weights(folder, (asked(path),))
    for place, tensor in weights(replace(folder, components=parts), (asked(path),)).items():
        assert torch.equal(tensor, expected[place]), place


def test_the_sum_is_rounded_once_to_the_dtype_drawn_in(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    model = resolve.at(tiny_folders["sd15"])
    path = tmp_path / "l.safetensors"
    write_lora(path, model, "kohya")
    exact, half = weights(model, (asked(path),)), weights(model, (asked(path),), torch.bfloat16)
    for place, tensor in half.items():
        assert torch.equal(tensor, exact[place].to(tensor.dtype)), place


def test_weights_stored_in_8_bits_are_rounded_after_the_sum(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    model = resolve.at(tiny_folders["sd15"])
    path = tmp_path / "l.safetensors"
    write_lora(path, model, "kohya")
    exact = weights(model, (asked(path),))
    narrow = load.load(
        "unet", model.components["unet"], dtype=torch.bfloat16, device="cpu", channels_last=True,
        added=adapters.additions("unet", model, (asked(path),)), storage=torch.float8_e4m3fn,
    ).module.state_dict()  # fmt: skip
    eights = [name for name, tensor in narrow.items() if tensor.dtype == torch.float8_e4m3fn]
    assert len(eights) > 100
    for name in eights:
        assert torch.equal(narrow[name].float(), exact["unet", name].to(torch.float8_e4m3fn).float()), name


def test_a_convolution_in_three_steps_adds_what_the_three_do_in_turn(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = resolve.at(tiny_folders["sd15"])
    layer = next(one for one in layers_of(model) if one.name == "mid_block.resnets.0.conv1")
    out, wide, *_ = layer.shape
    down, middle, up = torch.randn(3, wide, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(out, 3, 1, 1)
    path = tmp_path / "l.safetensors"
    name = "lora_unet_mid_block_resnets_0_conv1"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": middle, f"{name}.lora_up.weight": up,
               f"{name}.alpha": torch.tensor(1.5)}, path)  # fmt: skip
    added = weights(model, (asked(path),))[place_of(layer)] - weights(model, ())[place_of(layer)]
    image = torch.randn(1, wide, 8, 8)
    functional = torch.nn.functional
    expected = functional.conv2d(functional.conv2d(functional.conv2d(image, down), middle, padding=1), up) * 0.5
    got = functional.conv2d(image, added, padding=1)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_lora_that_is_not_finite_is_refused_and_its_layer_named(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = resolve.at(tiny_folders["sd15"])
    path = tmp_path / "l.safetensors"
    layer = next(one for one in layers_of(model) if one.name == "mid_block.resnets.0.conv1")
    write_lora(path, model, "kohya", only=[layer], size=float("nan"))
    with pytest.raises(BadFile, match=r"resnets\.0\.conv1 is not finite"):
        weights(model, (asked(path),))


def test_an_adapter_without_a_recorded_file_is_missing(tiny_folders: dict[str, Path]) -> None:
    with pytest.raises(ModelMissing, match="style"):
        adapters.additions("unet", resolve.at(tiny_folders["sd15"]), (Adapter(name="style", sha256="", scale=1.0),))


# --- images


def drawn(model: Model, given: Iterable[Adapter], **settings: Any) -> numpy.ndarray[Any, Any]:
    request = Request(**{
        "prompts": ("a cat",), "negative_prompt": "blurry", "seeds": (7,), "steps": 4, "guidance": 5.0, "width": 64,
        "height": 64, "sampler": "Euler", "pins": {"dtype": "fp32"},
    } | settings)  # fmt: skip
    plan = make_plan(request, model, HARDWARE, {}, adapters=tuple(given))
    (event,) = events_of(plan, Decoded)
    return numpy.frombuffer(event.pixels, numpy.uint8).reshape(64, 64, 3)


def pipeline_of(path: Path, family: str) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[family]
    made = kind.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipeline: Any, prompt: str = "a cat") -> numpy.ndarray[Any, Any]:
    from diffusers import EulerDiscreteScheduler

    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    image = pipeline(
        prompt, negative_prompt="blurry", num_inference_steps=4, guidance_scale=5.0, width=64, height=64,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]  # fmt: skip
    return numpy.asarray(image)


def apart(one: numpy.ndarray[Any, Any], other: numpy.ndarray[Any, Any]) -> int:
    return int(numpy.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("sd15", "kohya"), ("sdxl", "kohya"), ("sdxl", "sgm"), ("sd15", "diffusers"),
        pytest.param("sd15", "sgm", marks=pytest.mark.proof),
        pytest.param("sdxl", "diffusers", marks=pytest.mark.proof),
    ],
)  # fmt: skip
def test_images_equal_those_of_diffusers_with_peft(
    tiny_folders: dict[str, Path], family: str, layout: str, tmp_path: Path
) -> None:
    """Equal alphas throughout: diffusers ignores differing ones. It knows SD1.5 by kohya's names only, and no kohya
    name for SDXL's size embedding."""
    if (family, layout) == ("sd15", "sgm"):
        layout = "kohya"
    model = resolve.at(tiny_folders[family])
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    known = [layer for layer in layers_of(model) if layout != "kohya" or not layer.name.startswith("add_embedding")]
    write_lora(first, model, layout, alpha=lambda number: None if layout == "diffusers" else 2.0, only=known)
    write_lora(second, model, "diffusers", alpha=lambda number: None, seed=2)
    pipeline = pipeline_of(tiny_folders[family], family)
    pipeline.load_lora_weights(first, adapter_name="lora_00")
    pipeline.load_lora_weights(second, adapter_name="lora_01")
    pipeline.set_adapters(["lora_00", "lora_01"], [0.7, 0.4])
    own = drawn(model, (asked(first, 0.7), asked(second, 0.4)))
    assert apart(own, theirs(pipeline)) <= 1
    assert apart(own, drawn(model, ())) > 20
    assert apart(own, drawn(model, (asked(first, 0.7),))) > 1


@pytest.mark.parametrize("placement", ["drop-encoders", "disk"])
def test_whatever_is_dropped_comes_back_with_its_loras(
    tiny_folders: dict[str, Path], placement: str, tmp_path: Path
) -> None:
    model = resolve.at(tiny_folders["sd15"])
    path = tmp_path / "l.safetensors"
    write_lora(path, model, "kohya")
    pins = {"dtype": "fp32", "placement": placement}
    assert apart(drawn(model, (asked(path),)), drawn(model, (asked(path),), pins=pins)) == 0


# --- embeddings


def write_embedding(path: Path, family: str, *, vectors: int = 3, layout: str = "emb_params") -> Path:
    generator = torch.Generator().manual_seed(5)
    widths = {"sd15": {layout: 32}, "sdxl": {"clip_l": 32, "clip_g": 64}}[family]
    values = {name: torch.randn((vectors, width), generator=generator) * 0.2 for name, width in widths.items()}
    save_file(values, path)
    return path


def load_inversion(pipeline: Any, path: Path, token: str) -> None:
    from safetensors.torch import load_file

    state = load_file(path)
    if "clip_g" not in state:
        pipeline.load_textual_inversion(state, token=token)
        return
    for name, encoder, words in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer), ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2)
    ):  # fmt: skip
        pipeline.load_textual_inversion(state[name], token=token, text_encoder=encoder, tokenizer=words)
    # by its config the second encoder searches for the highest token, which an embedding's would be
    pipeline.text_encoder_2.text_model.eos_token_id = 49407


@pytest.mark.parametrize(
    ("family", "vectors"),
    [
        ("sd15", 1), ("sdxl", 3),
        pytest.param("sd15", 3, marks=pytest.mark.proof), pytest.param("sdxl", 1, marks=pytest.mark.proof),
    ],
)  # fmt: skip
def test_a_learned_word_draws_what_it_draws_in_diffusers(
    tiny_folders: dict[str, Path], family: str, vectors: int, tmp_path: Path
) -> None:
    model = resolve.at(tiny_folders[family])
    path = write_embedding(tmp_path / "mycat.safetensors", family, vectors=vectors)
    pipeline = pipeline_of(tiny_folders[family], family)
    load_inversion(pipeline, path, "mycat")
    word = asked(path, kind="embedding", word="mycat")
    own = drawn(model, (word,), prompts=("a photo of mycat, red",))
    assert apart(own, theirs(pipeline, "a photo of mycat, red")) <= 1
    assert apart(own, drawn(model, (), prompts=("a photo of mycat, red",))) > 1
    assert apart(own, drawn(model, (word,), prompts=("a photo of MyCat, red",))) == 0


def test_the_word_diffusers_stored_is_known_beside_the_files_name(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = resolve.at(tiny_folders["sd15"])
    path = write_embedding(tmp_path / "learned_embeds.safetensors", "sd15", layout="<red-cat>")
    word = asked(path, kind="embedding", word="learned_embeds")
    own, same, none = (
        drawn(model, (word,), prompts=(f"a {text} sleeps",)) for text in ("<red-cat>", "learned_embeds", "dog")
    )
    assert apart(own, same) == 0 and apart(own, none) > 1


def test_a_learned_word_is_found_alone_and_stays_whole() -> None:
    plain = tokenizer.vocabulary().tokenize
    words = {"cat": (49408, 49409), "red cat": (49410,)}
    ids = tokenizer.with_words(words)
    assert ids("a cat, scattered") == [*plain("a"), 49408, 49409, *plain(", scattered")]
    assert ids("one red cat") == [*plain("one"), 49410]
    assert tokenizer.with_words({})("a cat") == plain("a cat")
    long = tokenizer.chunks("dog " * 74 + "(cat:1.5)", "a1111", {"cat": (49408, 49409)})
    assert [len(chunk) for chunk in long] == [74, 2] and long[1] == ((49408, 1.5), (49409, 1.5))
    commas = tokenizer.chunks(
        "dog " * 60 + ", " + "dog " * 12 + "cat", "a1111", {"cat": tuple(range(49408, 49408 + 75))}
    )
    assert [len(chunk) for chunk in commas] == [61, 12, 75]


# --- another VAE


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_another_vae_decodes_in_place_of_the_models(tiny_folders: dict[str, Path], layout: str, tmp_path: Path) -> None:
    model = resolve.at(tiny_folders["sd15"])
    other = make_checkpoint.write_folder(tmp_path / "other", "sd15", tiny=True, seed=3)
    stored = other / "vae" / "diffusion_pytorch_model.safetensors"
    expected = drawn(replace(model, components={**model.components, "vae": resolve.at(other).components["vae"]}), ())
    if layout == "original":
        config = make_checkpoint.configs("sd15", tiny=True)["vae"]
        planned = make_checkpoint.planned("vae", config, 3)
        names = dict(make_checkpoint.original("sd15", "vae", config, planned))
        stored = tmp_path / "vae.safetensors"
        bare = {name.removeprefix("first_stage_model."): tensor for name, tensor in names.items()}
        make_checkpoint.write_safetensors(stored, bare, "fp32")
    own = drawn(adapter_files.with_vae(model, stored), ())
    assert apart(own, expected) == 0
    assert apart(own, drawn(model, ())) > 1
