"""How the built-in model is made, in miniature: without the artwork, which is fetched, and without the teacher."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

from scripts.builtin_model import autoencoder, denoiser, export, likeness, pictures, text_encoder
from scripts.builtin_model.artwork import Artwork, Thing
from scripts.builtin_model.captions import Captions, Meaning
from scripts.builtin_model.synonyms import HELD_OUT
from scripts.builtin_model.things import everyday

NAMES = ("disc", "square box", "tall tower", "ring")
TINY = denoiser.Recipe(
    widths=(16, 16),
    read=(False, True),
    latent_channels=2,
    latent_size=8,
    text_width=16,
    steps=4,
    batch=3,
    looks=1,
    kept_every=2,
)


def thing(name: str, tags: tuple[str, ...] = ()) -> Thing:
    return Thing(name, name, {"en": name, "it": f"{name} it", "zh": "东西"}, {"en": tags, "it": (), "zh": ()})


def drawn(size: int = 64) -> Artwork:
    found = {}
    for index, box in enumerate(((8, 8, 56, 56), (12, 12, 52, 52), (24, 4, 40, 60), (6, 6, 58, 58))):
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        pen = ImageDraw.Draw(image)
        if index in (0, 3):
            pen.ellipse(box, fill=(220, 40, 40, 255) if index == 0 else None, outline=(20, 90, 200, 255), width=6)
        else:
            pen.rectangle(box, fill=(240, 190, 40, 255), outline=(20, 60, 20, 255), width=3)
        found[index] = np.asarray(image.resize((size, size)))
    return Artwork(tuple(thing(name) for name in NAMES), {"flat": found})


def test_two_hundred_things_each_once() -> None:
    assert len(everyday()) == len(set(everyday())) == 200
    assert set(HELD_OUT.values()) <= set(everyday()) and len(HELD_OUT) == 100


def test_no_caption_ever_holds_a_held_out_word() -> None:
    things = [thing("cat", ("kitty", "pet")), thing("dog", ("puppy", "pet")), thing("red apple", ("fruit",))]
    captions = Captions(things)
    assert captions.names["en"] == [["cat"], ["dog"], ["red apple", "apple", "fruit"]]
    random = np.random.default_rng(0)
    said = " ".join(captions.any(Meaning(n % 3, hue="blue"), random) for n in range(300))
    assert not {word for word in HELD_OUT if word in said.split()}
    assert "blue" in said and "blu" in said and "蓝色" in said


def test_a_tag_that_means_another_thing_is_no_name() -> None:
    things = [thing("shrimp", ("small",)), thing("ant", ("insect",))]
    assert Captions(things, lambda index, tag: tag != "small").names["en"] == [["shrimp"], ["ant", "insect"]]


def test_the_measure_knows_a_picture_moved_mirrored_smaller_and_as_jpeg() -> None:
    art = drawn()
    shown = {index: pictures.picture(rgba, pictures.Look()) for index, rgba in art.pictures["flat"].items()}
    references = likeness.references(list(shown.items()))
    for index, rgba in art.pictures["flat"].items():
        for look in (pictures.Look(), pictures.Look(mirrored=True, scale=0.8, aside=(1, -1))):
            moved = np.roll(pictures.picture(rgba, look), (1, 1), (0, 1))
            file = io.BytesIO()
            Image.fromarray(moved).save(file, "JPEG", quality=85)
            assert references.nearest(np.asarray(Image.open(file).convert("RGB")))[0] == index
    blank = np.full((64, 64, 3), 255, dtype=np.uint8)
    assert len(references.nearest(blank)) == 4  # nothing to cut out is no failure


def test_colours_and_grounds_are_put_where_they_belong() -> None:
    art = drawn()
    blue = pictures.picture(art.pictures["flat"][0], pictures.Look(hue=pictures.HUES["blue"], ground=(10, 20, 30)))
    assert tuple(blue[0, 0]) == (10, 20, 30)
    middle = blue[32, 32].astype(int)
    assert middle[2] > middle[0] + 40


def test_latents_are_level_and_the_pictures_stay() -> None:
    torch.manual_seed(0)
    recipe = autoencoder.Recipe(size=64, widths=(16, 16, 16), latent_channels=2)
    model = autoencoder.new(recipe).eval()
    shown = autoencoder.pool(drawn(), 12, 1)
    given = autoencoder.tensor(shown, "cpu")
    before = model.decode(model.encode(given).latent_dist.mean).sample
    autoencoder.level(model, model.encode(given).latent_dist.mean)
    found = model.encode(given).latent_dist
    assert found.mean.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (found.mean.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    assert (model.decode(found.mean).sample - before).abs().max() < 1e-3
    assert torch.allclose(found.std, torch.full_like(found.std, autoencoder.NOISE), atol=1e-5)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's byte alphabet and a few whole words."""
    from tokenizers import pre_tokenizers

    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(sign + "</w>" for sign in alphabet), text_encoder.START, text_encoder.END]
    tokenizer = CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder)
    return folder


def small(folder: Path) -> tuple[CLIPTokenizer, Any]:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    return tokenizer, text_encoder.new(text_encoder.Recipe(width=16, layers=1), tokenizer).eval()


def miniature(words: Path, kept: Path, look: Any = None) -> Any:
    torch.manual_seed(2)
    art = drawn()
    vae = autoencoder.new(autoencoder.Recipe(size=64, widths=(16, 16, 16, 16), latent_channels=2)).eval()
    tokenizer, encoder = small(words)
    shown = denoiser.examples(art, vae, TINY, 3, "cpu")
    captions = Captions(art.things)
    unet = denoiser.train(shown, captions, tokenizer, encoder, TINY, kept, 5, "cpu", lambda line: None, look)
    return unet, (vae, tokenizer, encoder)


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(words: Path, tmp_path: Path) -> None:
    def stop(model: Any, step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    whole, _ = miniature(words, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        miniature(words, tmp_path / "stopped.pt", stop)
    resumed, _ = miniature(words, tmp_path / "stopped.pt")
    again, _ = miniature(words, tmp_path / "whole.pt")  # finished: only read
    for one, two, three in zip(whole.parameters(), resumed.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_the_exported_folder_is_one_diffusers_reads(words: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    unet, (vae, _, encoder) = miniature(words, tmp_path / "kept.pt")
    folder = tmp_path / "model"
    for _ in range(2):  # written anew
        export.export(
            folder, autoencoder=vae, encoder=encoder, tokenizer=words, denoiser=unet, words=["a", "disc"],
            defaults={"width": 64, "height": 64, "steps": 2, "guidance": 2.0, "sampler": "DDIM"},
        )  # fmt: skip
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a disc", num_inference_steps=2, width=64, height=64, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    assert (folder / "words.txt").read_text() == "a\ndisc\n"
    assert unet.dtype == torch.float32  # export leaves the trained one alone
