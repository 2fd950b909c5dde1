"""A model with the built-in one's architecture, drawn by the real engine: as diffusers' pipeline draws its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import builtin_model
import pytest
import torch
from draw_samples import HARDWARE
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sdcli.draw import local, prompts
from sdcli.draw.place import Components
from sdcli.errors import BadFile, Usage
from sdcli.events import Decoded, Denoised, Encoded, Preview
from sdcli.models import folder, unet
from sdcli.models.model import Model
from sdcli.plan import calibration
from sdcli.plan.plan import Adapter, Setup
from sdcli.plan.planner import make_plan
from sdcli.request import prompt, samplers, tokenizer
from sdcli.request.jobs import make_jobs
from sdcli.request.request import Job, Request

PROMPTS = ("a red cat", "un gatto rosso con l'ombrello, caffè", "一只红色的猫")
LONG = "stone " * 80 + ", a (red:1.4) castle " + "tree " * 40


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin_model.write(tmp_path_factory.mktemp("package") / "builtin")


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return folder.read(path, family="builtin")


@pytest.fixture(scope="module")
def pipeline(path: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    for module in (made.unet, made.vae):
        module.to(memory_format=torch.channels_last)  # as sdcli loads them
    return made


def events(model: Model, **asked: Any) -> list[Any]:
    settings: dict[str, Any] = {
        "prompts": ("a red cat",), "seeds": (7,), "steps": 3, "guidance": 3.5, "width": 64, "height": 64,
        "sampler": "Euler", "model": "builtin", "pins": {"dtype": "fp32"},
    } | asked  # fmt: skip
    return list(local.run(make_plan(Request(**settings), model, HARDWARE, {})))


def theirs(pipeline: Any, sampler: str, **given: Any) -> Any:
    import diffusers

    known, before = samplers.find(sampler), pipeline.scheduler
    try:
        pipeline.scheduler = getattr(diffusers, known.scheduler).from_config(before.config, **known.options)
        return pipeline(
            num_inference_steps=3, width=64, height=64, generator=[torch.Generator("cpu").manual_seed(7)], **given
        ).images
    finally:
        pipeline.scheduler = before


CASES = [(name, guidance) for name in samplers.ZERO_SNR for guidance in (1.0, 3.5)]


@pytest.mark.parametrize(("sampler", "guidance"), CASES)
def test_latents_equal_those_of_diffusers_bit_for_bit(
    model: Model, pipeline: Any, sampler: str, guidance: float
) -> None:
    text = PROMPTS[CASES.index((sampler, guidance)) % len(PROMPTS)]
    expected = theirs(pipeline, sampler, prompt=text, guidance_scale=guidance, output_type="latent")
    (own,) = [
        event.latents
        for event in events(model, prompts=(text,), sampler=sampler, guidance=guidance)
        if isinstance(event, Denoised)
    ]
    assert own.shape == (1, 8, 8, 8) and torch.isfinite(expected).all()
    assert (own - expected).abs().max().item() == 0.0


def test_the_image_equals_the_one_diffusers_draws_and_has_its_previews(model: Model, pipeline: Any) -> None:
    image = theirs(pipeline, "DDIM", prompt="a cat", negative_prompt="red", guidance_scale=3.5)[0]
    found = events(model, prompts=("a cat",), negative_prompt="red", sampler="DDIM", preview_every=1)
    (drawn,) = [event for event in found if isinstance(event, Decoded)]
    assert (drawn.width, drawn.height) == image.size == (64, 64) and drawn.pixels == image.tobytes()
    previews = [event for event in found if isinstance(event, Preview)]
    assert [(event.width, event.height, len(event.pixels)) for event in previews] == [(8, 8, 192)] * 3
    rows = torch.tensor(model.preview)
    assert rows.shape == (9, 3) and len({event.pixels for event in previews}) == 3


@pytest.mark.parametrize("size", [(128, 128), (72, 104)])
def test_any_size_that_eight_divides_is_drawn(model: Model, size: tuple[int, int]) -> None:
    found = events(model, width=size[0], height=size[1], steps=1, guidance=1.0, pins={"dtype": "bf16"})
    (drawn,) = [event for event in found if isinstance(event, Decoded)]
    assert (drawn.width, drawn.height) == size and len(drawn.pixels) == size[0] * size[1] * 3


@pytest.mark.parametrize("sampler", [each.name for each in samplers.SAMPLERS if not each.zero_snr])
def test_samplers_that_cannot_start_from_pure_noise_are_refused(model: Model, sampler: str) -> None:
    with pytest.raises(Usage, match="zero terminal SNR"):
        samplers.check_zero_snr(samplers.find(sampler), model.zero_snr)


# --- its own tokens


TEXTS = st.text(st.sampled_from("aBc xyz,.!'s0123éñàçß猫狗的一只苹果😀-_/()\n\t"), max_size=60) | st.text(max_size=40)
WORDS = st.lists(st.sampled_from(["un gatto", "l'albero", "perché", "caffè", "一只猫", "红色的苹果", "a cat's", "3d"]))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(text=TEXTS | WORDS.map(" ".join))
def test_its_tokens_are_those_of_transformers_with_its_files(path: Path, pipeline: Any, text: str) -> None:
    text = prompt.neutral(text)
    known = tokenizer.vocabulary(str(path / "tokenizer"))
    row = pipeline.tokenizer(text)["input_ids"]
    assert row == [known.start, *known.tokenize(text), known.end]
    assert (known.start, known.end, known.size) == (builtin_model.START, builtin_model.END, builtin_model.TOKENS)


def test_it_shares_no_number_with_clip(path: Path) -> None:
    own, clip = tokenizer.vocabulary(str(path / "tokenizer")), tokenizer.vocabulary()
    assert not set(zip(own.tokenize("a red cat, un gatto"), clip.tokenize("a red cat, un gatto"), strict=False)) & {
        (token, token) for token in range(own.size)
    }


def encoded_by(model: Model, setup: Setup, jobs: Sequence[Job]) -> tuple[prompts.Prompts, Components]:
    """These jobs' texts through the model's only encoder."""
    own, components = prompts.Prompts(model, setup.adapters), Components(model, setup)
    list(components.ready(["text_encoder"]))
    keys = own.needed(jobs)
    own.store(keys, [own.encode(components, "text_encoder", keys)])
    return own, components


@torch.no_grad()
def test_a_long_weighted_prompt_is_encoded_in_chunks_as_calculated_by_hand(model: Model, pipeline: Any) -> None:
    (encoded,) = [event for event in events(model, prompts=(LONG,), steps=1) if isinstance(event, Encoded)]
    chunks = tokenizer.chunks(LONG, folder=model.vocabulary)
    assert len(chunks) > 1 and encoded.tokens == (sum(map(len, chunks)),)
    parts = []
    for chunk in chunks:
        ids = [builtin_model.START, *(token for token, _ in chunk), builtin_model.END]
        ids += [builtin_model.END] * (77 - len(ids))
        states = pipeline.text_encoder(torch.tensor([ids])).last_hidden_state
        weights = torch.tensor([1.0, *(weight for _, weight in chunk)] + [1.0] * (76 - len(chunk)))[None, :, None]
        parts.append(states if (weights == 1).all() else states * weights * (states.mean() / (states * weights).mean()))
    request = Request(prompts=(LONG,), seeds=(7,), width=64, height=64, pins={"dtype": "fp32"}, sampler="Euler")
    plan = make_plan(request, model, HARDWARE, {})
    own, components = encoded_by(model, plan.setup, plan.jobs)
    rows = own.conditioning(plan.jobs, components, (64, 64), alone=False).rows["encoder_hidden_states"]
    torch.testing.assert_close(rows[1:], torch.cat(parts, dim=1), rtol=1e-5, atol=1e-6)


def test_a_vocabulary_larger_than_the_encoders_is_refused(model: Model, tmp_path: Path, path: Path) -> None:
    own = tmp_path / "tokenizer"
    shutil.copytree(path / "tokenizer", own)
    table = json.loads((own / "vocab.json").read_text(encoding="utf-8"))
    (own / "vocab.json").write_text(json.dumps(table | {"xyz": len(table)}), encoding="utf-8")
    with pytest.raises(BadFile, match="4096 token embeddings, its tokenizer 4097 tokens"):
        events(replace(model, vocabulary=str(own)))
    (own / "vocab.json").write_text("{}", encoding="utf-8")
    tokenizer.vocabulary.cache_clear()
    with pytest.raises(BadFile):
        events(replace(model, vocabulary=str(own)))


def test_an_embeddings_word_comes_after_the_models_own_tokens(model: Model, pipeline: Any, tmp_path: Path) -> None:
    """An embedding with the vectors of two known tokens draws what these tokens draw."""
    tokens = tokenizer.vocabulary(model.vocabulary).tokenize("xylophone")
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    file = tmp_path / "instrument.safetensors"
    save_file({"emb_params": table[tokens].clone()}, file)
    word = Adapter(name="instrument", word="instrument", sha256="0" * 64, scale=1.0, kind="embedding", path=str(file))
    jobs = make_jobs(Request(prompts=("a red (instrument:1.2)", "a red (xylophone:1.2)"), seeds=(7,), sampler="Euler"))
    own, components = encoded_by(model, Setup(adapters=(word,)), jobs)
    rows = own.conditioning(jobs, components, (64, 64), alone=False).rows["encoder_hidden_states"]
    assert len(tokens) > 1 and torch.equal(rows[2], rows[3]) and not torch.equal(rows[0], rows[2])


# --- on paper


def test_its_parameters_are_counted_exactly(model: Model, pipeline: Any) -> None:
    for name, component in model.components.items():
        module = getattr(pipeline, name)
        assert component.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert model.components["unet"].parameters == builtin_model.UNET_PARAMETERS


def test_its_multiply_adds_are_counted_exactly(model: Model) -> None:
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    config = model.components["unet"].config
    with torch.device("meta"):
        module = UNet2DConditionModel.from_config(dict(config)).eval()
        given = torch.empty(2, 8, 16, 16), torch.empty(()), torch.empty(2, 77, 256)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*given)
    found = unet.analyse(config, height=16, width=16, batch=2, tokens=77)
    assert found.macs == counter.get_total_flops() // 2


def test_its_memory_is_predicted_before_it_is_loaded(model: Model) -> None:
    asked = Request(prompts=("a cat",), seeds=(7,), width=128, height=128, sampler="Euler")
    plan = make_plan(asked, model, HARDWARE, {})
    weights = sum(part.parameters for part in model.components.values()) * (2 if plan.setup.dtype == "bf16" else 4)
    assert weights < plan.footprint.host_peak - calibration.IMPORTS < weights + (100 << 20)


# --- the commands


@pytest.fixture
def command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """sdcli in a build with this model; what it wrote to stdout."""
    from sdcli import data
    from sdcli.cli.main import run

    monkeypatch.setattr(data, "builtin_model", lambda: path)
    monkeypatch.chdir(tmp_path)

    def done(*words: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            run(words)
        captured = capfd.readouterr()
        assert left.value.code in (0, None), captured.err
        return captured.out

    return done


def test_it_draws_without_being_named_with_its_filmstrip(command: Callable[..., str]) -> None:
    asked = ("--dtype", "fp32", "--size", "64x64", "-s", "2", "--seed", "3", "--filmstrip", "2")
    report = json.loads(command("generate", "a red cat", *asked, "--json"))
    (image,) = report["images"]
    assert report["plan"]["model"]["name"] == "builtin" and image["status"] in ("saved", "suspect")
    assert report["plan"]["setup"]["dtype"] == "fp32" and image["sampler"] == "Euler"
    assert Path(image["path"]).with_suffix(".filmstrip.png").is_file()


def test_inspect_and_check_read_it(command: Callable[..., str]) -> None:
    shown = command("inspect-unet", "builtin").splitlines()
    assert "the built-in model" in shown[0] and "at 128×128" in "\n".join(shown[:4])
    assert command("models", "check", "builtin").endswith("builtin: sound\n")
