"""Making the built-in model, in miniature: without the artwork, which is fetched, and without the teacher."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

from scripts import evaluate_builtin
from scripts.builtin_model import (
    autoencoder,
    denoiser,
    examples,
    export,
    fields,
    images,
    laying,
    likeness,
    text_encoder,
    wordnet,
)
from scripts.builtin_model.artwork import Artwork, Thing, _sided
from scripts.builtin_model.captions import Captions, Meaning, several
from scripts.builtin_model.synonyms import HELD_OUT, named
from scripts.builtin_model.things import everyday

NAMES = ("disc", "square box", "tall tower", "ring")
TINY = denoiser.Recipe(widths=(16, 16), moment=16, latent_size=8, text_width=32, steps=4, read=2, batch=3, kept_every=2)
FEW = examples.Amounts(pairs=6, counts=6)


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
    other = {index: rgba[..., [2, 0, 1, 3]] for index, rgba in found.items()}
    return Artwork(tuple(thing(name) for name in NAMES), {"flat": found, "3d": other}, frozenset({2}))


def usual(thing: int) -> str:
    return "flat"


def test_two_hundred_things_each_once() -> None:
    assert len(everyday()) == len(set(everyday())) == 200
    assert set(HELD_OUT.values()) <= set(everyday()) and len(HELD_OUT) == 100
    assert named("kitty") == ("cat", "cat face") and named("mallet") == ("hammer",)


def test_no_caption_ever_holds_a_held_out_word() -> None:
    things = [thing("cat", ("kitty", "pet")), thing("dog", ("puppy", "pet")), thing("red apple", ("fruit",))]
    captions = Captions(things, usual)
    assert captions.names["en"] == [["cat"], ["dog"], ["red apple", "apple", "fruit"]]
    random = np.random.default_rng(0)
    said = " ".join(captions.any(Meaning(n % 3, hue="blue"), random) for n in range(300))
    assert not {word for word in HELD_OUT if word in said.split()}
    assert "blue" in said and "blu" in said and "蓝色" in said


def test_a_tag_that_means_another_thing_is_no_name() -> None:
    things = [thing("shrimp", ("small",)), thing("ant", ("insect",))]
    assert Captions(things, usual, lambda index, tag: tag != "small").names["en"] == [["shrimp"], ["ant", "insect"]]


def test_captions_say_styles_counts_and_what_stands_beside() -> None:
    captions = Captions([thing("cat"), thing("cherry")], usual)
    random = np.random.default_rng(0)

    def said(meaning: Meaning) -> set[str]:
        return {captions.any(meaning, random) for _ in range(300)}

    assert "cat, 3d" in said(Meaning(0, "3d")) and all("3d" in text for text in said(Meaning(0, "3d")))
    assert any("flat" in text for text in said(Meaning(0, "flat"))) and "a cat" in said(Meaning(0, "flat"))
    assert {"three cherries", "tre cherry it", "三个东西"} <= said(Meaning(1, count=3))
    assert {"a cat and a cherry", "cat it e cherry it"} <= said(Meaning(0, beside=1))
    assert [several(name) for name in ("apple", "box", "cherry", "key", "glasses", "dress")] == [
        "apples", "boxes", "cherries", "keys", "glasses", "dresses",
    ]  # fmt: skip


def test_several_things_stand_where_they_are_looked_for() -> None:
    art = drawn()
    both = fields.Colours().on(images.together([art.images["flat"][0], art.images["flat"][1]]))
    shown = {index: images.image(rgba, images.Look()) for index, rgba in art.images["flat"].items()}
    references = likeness.references(list(shown.items()))
    assert [references.nearest(cell, 1) for cell in evaluate_builtin.cells(both, 2)] == [[0], [1]]
    three = fields.Colours((250, 220, 200)).on(images.together([art.images["flat"][3]] * 3))
    assert [references.nearest(cell, 1) for cell in evaluate_builtin.cells(three, 3)] == [[3]] * 3


def test_a_thing_whose_mirror_image_is_another_thing_is_sided() -> None:
    left = np.zeros((32, 32, 4), np.uint8)
    left[8:24, 2:10] = (200, 0, 0, 255)
    whole = np.zeros((32, 32, 4), np.uint8)
    whole[8:24, 4:28] = (0, 0, 200, 255)
    assert _sided({"flat": {0: left, 1: left[:, ::-1].copy(), 2: whole}}) == {0, 1}


def test_the_measure_knows_an_image_moved_mirrored_smaller_and_as_jpeg() -> None:
    art = drawn()
    shown = {index: images.image(rgba, images.Look()) for index, rgba in art.images["flat"].items()}
    references = likeness.references(list(shown.items()))
    for index, rgba in art.images["flat"].items():
        for look in (images.Look(), images.Look(mirrored=True, scale=0.8, aside=(1, -1))):
            moved = np.roll(images.image(rgba, look), (1, 1), (0, 1))
            file = io.BytesIO()
            Image.fromarray(moved).save(file, "JPEG", quality=85)
            assert references.nearest(np.asarray(Image.open(file).convert("RGB")))[0] == index
    blank = np.full((64, 64, 3), 255, dtype=np.uint8)
    assert len(references.nearest(blank)) == 4  # nothing to cut out is no failure


def test_how_far_two_images_are_apart_to_the_eye() -> None:
    white, black = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    assert evaluate_builtin.difference(white, white) == 0
    assert evaluate_builtin.difference(white, black) == pytest.approx(100, abs=0.1)
    assert evaluate_builtin.difference(white, red) == pytest.approx(np.linalg.norm((46.76, 80.11, 67.22)), abs=0.2)
    half = np.concatenate([white[:2], black[:2]])
    assert evaluate_builtin.difference(white, half) == pytest.approx(50, abs=0.1)


def test_colours_and_grounds_are_put_where_they_belong() -> None:
    art = drawn()
    blue = images.image(art.images["flat"][0], images.Look(hue=images.HUES["blue"], ground=(10, 20, 30)))
    assert tuple(blue[0, 0]) == (10, 20, 30)
    middle = blue[32, 32].astype(int)
    assert middle[2] > middle[0] + 40


def test_latents_are_level_and_the_images_stay() -> None:
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
    return tokenizer, text_encoder.new(text_encoder.Recipe(width=32, layers=1), tokenizer).eval()


def miniature(words: Path, kept: Path, stop_at: int = 0) -> Any:
    torch.manual_seed(2)
    art = drawn()
    vae = autoencoder.new(autoencoder.Recipe(size=64, widths=(16, 16, 16, 16))).eval()
    tokenizer, encoder = small(words)
    shown = examples.examples(art, vae, 32, FEW, 3, "cpu", kept.with_name("examples.pt"))
    reader = denoiser.Reader(Captions(art.things, art.usual), tokenizer, encoder, "cpu")
    recipe = replace(TINY, read=stop_at) if stop_at else TINY
    unet = denoiser.train(shown, None if stop_at else reader, recipe, kept, 5, "cpu", lambda line: None)
    return unet, (vae, tokenizer, encoder)


def test_a_training_that_was_stopped_continues_as_if_it_had_not_been(words: Path, tmp_path: Path) -> None:
    whole, _ = miniature(words, tmp_path / "whole.pt")
    miniature(words, tmp_path / "stopped.pt", stop_at=2)
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 2
    resumed, _ = miniature(words, tmp_path / "stopped.pt")
    again, _ = miniature(words, tmp_path / "whole.pt")  # finished: only read
    for one, two, three in zip(whole.parameters(), resumed.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def made(words: Path, folder: Path) -> examples.Examples:
    miniature(words, folder / "kept.pt")
    return examples.examples(drawn(), None, 32, FEW, 3, "cpu", folder / "examples.pt")  # type: ignore[arg-type]


def test_a_code_is_its_image_in_the_form_of_the_encoders_states(words: Path, tmp_path: Path) -> None:
    found = made(words, tmp_path)
    codes = found.codes(range(len(found.meanings)), found.meanings)
    every = torch.cat([codes, found.basis.silence()[None]])
    assert every.mean(1).abs().max() < 1e-5  # what the last norm of the encoder takes away
    assert torch.allclose(every.square().mean(1), torch.ones(len(every)), atol=1e-5)
    assert torch.pdist(codes[[0, 1, 2, 3]]).min() > 1
    assert len(found.meanings) == len(found.latents) == len(found.mattes) == len(found.grey)
    assert {meaning.count for meaning in found.meanings} > {1} and any(m.beside is not None for m in found.meanings)
    counted = [meaning for meaning in found.meanings if meaning.count > 1]
    assert len(set(counted)) == len(counted)  # each once


def test_what_is_said_of_a_thing_is_marked_in_its_code_always_in_the_same_way(words: Path, tmp_path: Path) -> None:
    found, random = made(words, tmp_path), np.random.default_rng(1)
    asked = [found.any(random, denoiser.SHARES) for _ in range(900)]
    said = found.codes([row for row, _ in asked], [meaning for _, meaning in asked]) @ found.basis.turn
    said = said / said[:, -1:]  # against the part that is always the same
    directions = len(found.basis.directions)
    alone = found.codes(range(len(found.meanings)), found.meanings) @ found.basis.turn
    alone = alone / alone[:, -1:]
    assert {meaning.kind() for _, meaning in asked} == set(denoiser.SHARES)
    assert {"white", "black"} <= {meaning.ground for _, meaning in asked}
    for (row, meaning), code in zip(asked, said, strict=True):
        heard = dict(zip(examples.MARKS, code[directions:-1].tolist(), strict=True))
        given = {
            ("style", meaning.style), ("hue", meaning.hue), ("ground", meaning.ground), ("count", meaning.count),
            ("beside", "another" if meaning.beside is not None else None),
        }  # fmt: skip
        wanted = {mark: loud * (mark in given) for mark, loud in examples.MARKS.items()}
        if meaning.ground == "white":
            wanted["ground", "black"] = -examples.MARKS["ground", "black"]
        assert heard == pytest.approx(wanted, abs=1e-4)
        assert torch.allclose(code[:directions], alone[row][:directions], atol=1e-4)  # the thing's own


def test_a_lesson_is_captions_and_words_with_the_codes_they_are_led_to(words: Path, tmp_path: Path) -> None:
    found, art = made(words, tmp_path), drawn()
    captions = Captions(art.things, art.usual)
    listed = text_encoder.Words(["blob", "slab"], np.array([0, 1]), np.array([0.5, 0.5]))
    recipe = text_encoder.Recipe(captions=20, others=8)
    texts, wanted = text_encoder._lesson(found, listed, captions, recipe, np.random.default_rng(1))
    assert len(texts) == len(wanted) == 29
    assert texts[-1] == "" and torch.equal(wanted[-1], found.basis.silence())
    for text, code in zip(texts[20:28], wanted[20:28], strict=True):
        thing, style = (0 if "blob" in text else 1), ("3d" if "3d" in text else "flat")
        row = found.plain[thing, style]
        assert torch.allclose(code, found.codes([row], [found.meanings[row]])[0], atol=1e-5)
    tokenizer, encoder = small(words)
    assert "names" in text_encoder.knows(encoder, tokenizer, found, art.things, captions, "cpu")


def test_what_a_prompt_leaves_open_is_chosen_by_chance_and_the_rest_is_not() -> None:
    random = np.random.default_rng(1)
    silent = [fields.chosen(random, Meaning(0)) for _ in range(400)]
    assert len({one.ground for one in silent}) > 300 and len({one.vivid for one in silent}) > 300
    assert {one.hue for one in silent} == {None}  # the artwork's own
    for one in silent:
        assert max(one.ground) >= 239 and min(one.ground) >= 150  # soft
    said = [fields.chosen(random, Meaning(0, hue="blue", ground="white"), grey=True) for _ in range(50)]
    assert {(one.ground, one.hue, one.tinted) for one in said} == {((255, 255, 255), images.HUES["blue"], True)}


def test_colours_are_numbers_and_images() -> None:
    art = drawn().images["flat"]
    assert fields.Colours().values() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert len(fields.Colours().values()) == fields.COUNT - 1
    assert np.array_equal(fields.Colours().on(art[1]), images.image(art[1], images.Look()))
    ground = images.GROUNDS["green"]
    for hue in (None, images.HUES["blue"]):
        wanted = images.image(art[1], images.Look(ground=ground, hue=hue))
        seen = fields.Colours(ground, hue, hue is not None and images.grey(art[1])).on(art[1])
        assert np.abs(seen.astype(int) - wanted).max() <= 1
    means = [fields.Colours(light=light).on(art[1])[32, 32].mean() for light in (-1.0, 0.0, 1.0)]
    assert means == sorted(set(means))
    spread = [np.ptp(fields.Colours(vivid=vivid).on(art[1])[32, 32].astype(int)) for vivid in (-1.0, 0.0)]
    assert spread[0] < spread[1]
    cells = fields.matte(np.stack([rgba[..., 3] for rgba in art.values()]), 8)
    assert cells.shape == (4, 8, 8) and cells[1, 4, 4] == 1 and cells[1, 0, 0] == -1 and -1 < cells[1, 1, 4] < 1


@pytest.mark.proof
def test_an_autoencoder_gains_channels_for_colours_around_the_same_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = autoencoder.new(autoencoder.Recipe(size=64, widths=(16, 16, 16))).eval()
    autoencoder.level(plain, torch.randn(4, 8, 16, 16))
    model = laying.widened(plain).eval()
    whole = autoencoder.tensor(autoencoder.pool(drawn(), 2, 1), "cpu")
    with torch.no_grad():
        found, before = model.encode(whole).latent_dist, plain.encode(whole).latent_dist
        assert torch.allclose(found.mean[:, :8], before.mean, atol=1e-5) and found.mean.shape[1] == 17
        assert torch.allclose(found.std, torch.full_like(found.std, autoencoder.NOISE), atol=1e-5)
        louder = torch.cat([before.mean, torch.randn(2, 9, 16, 16)], dim=1)
        assert torch.allclose(model.decode(louder).sample, plain.decode(before.mean).sample, atol=1e-4)
    shown = laying.images(drawn(), plain, 4, 1, "cpu")
    told: list[str] = []
    recipe, kept = laying.Recipe(crop=32, crops=4, steps=100, reading=150, rate=6e-3), tmp_path / "laid.pt"
    trained, again = (laying.train(shown, plain, recipe, kept, 1, "cpu", told.append) for _ in range(2))
    assert len(told) == 2 and "laid" in told[0] and "read" in told[1]  # the second time it was only read from the files
    assert all(torch.equal(one, two) for one, two in zip(trained.parameters(), again.parameters(), strict=True))
    (before_laid, _), (after_laid, _) = (laying.fidelity(one, shown, 3, "cpu", 20) for one in (model, trained))
    assert after_laid > before_laid + 3
    grounded = shown.any(np.random.default_rng(3), 8).grounded()
    with torch.no_grad():
        far = [(one.encode(grounded.seen("cpu")).latent_dist.mean - grounded.latents("cpu")).square().mean()
               for one in (model, trained)]  # fmt: skip
    assert far[1] < 0.7 * far[0]
    rows = laying.preview(shown, 1, 20)
    assert len(rows) == 18 and all(len(row) == 3 for row in rows)


def test_words_are_kinds_of_things(tmp_path: Path) -> None:
    """A WordNet of five senses, in the files of the real one."""
    nouns = {
        "00000001": ("entity", ""), "00000002": ("animal", "@ 00000001 n 0000"),
        "00000003": ("cat", "@ 00000002 n 0000"), "00000004": ("kitty", "@ 00000003 n 0000"),
        "00000005": ("pot", "@ 00000001 n 0000"),
    }  # fmt: skip
    data = "".join(
        f"{place} 03 n 01 {word} 0 {1 if up else 0:03d} {up} | said\n" for place, (word, up) in nouns.items()
    )
    senses = {word: [place] for place, (word, _) in nouns.items()} | {"kitty": ["00000005", "00000004"]}
    index = "".join(f"{word} n {len(found)} 1 @ {len(found)} 0 {' '.join(found)}  \n" for word, found in senses.items())
    name, version, _ = wordnet.PACKAGE
    with tarfile.open(tmp_path / f"{name}-{version}.tgz", "w:gz") as file:
        for path, text in (("index.noun", "  1 a licence\n" + index), ("data.noun", "  1 a licence\n" + data)):
            held = tarfile.TarInfo(f"package/dict/{path}")
            held.size = len(text.encode())
            file.addfile(held, io.BytesIO(text.encode()))
    table = wordnet.Kinds(tmp_path).likeness(["cat", "kitty", "animal", "pot", "unheard"], [thing("cat"), thing("pot")])
    assert table[0].tolist() == [1, 0] and table[3].tolist() == [0, 1]
    assert table[1, 1] == 1 and 0.5 < table[1, 0] < 1  # its first sense is the pot, its second a kind of cat
    assert table[2].tolist() == [0, 0] and table[4].tolist() == [0, 0]


def test_an_autoencoder_grows_a_level_around_the_same_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = autoencoder.new(autoencoder.Recipe(size=32, widths=(16, 16), latent_channels=2)).eval()
    model = autoencoder.widened(inner).eval()
    latents = torch.randn(1, 2, 16, 16)
    assert model.decode(latents).sample.shape == (1, 3, 64, 64)
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    recipe = autoencoder.Outer(reading=400, steps=5, batch=2, pool=4)
    found = autoencoder.train_outer(drawn(), inner, recipe, tmp_path / "outer.pt", 1, "cpu", lambda line: None)
    again = autoencoder.train_outer(drawn(), inner, recipe, tmp_path / "outer.pt", 1, "cpu", lambda line: None)
    same = dict(zip(found.state_dict(), zip(found.parameters(), again.parameters(), strict=True), strict=True))
    assert all(torch.equal(one, two) for one, two in same.values())
    assert not torch.equal(found.decoder.conv_out.weight, before["decoder.conv_out.weight"])
    assert torch.equal(found.quant_conv.weight, before["quant_conv.weight"])  # what is between stays
    whole = autoencoder.tensor(autoencoder.pool(drawn(), 2, 1), "cpu")
    with torch.no_grad():
        read = found.encode(whole).latent_dist.mean
        wanted = inner.encode(torch.nn.functional.avg_pool2d(whole, 2)).latent_dist.mean
    assert (read - wanted).square().mean() < 0.15 * wanted.var()


def test_the_exported_folder_is_one_diffusers_reads(words: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    unet, (vae, _, encoder) = miniature(words, tmp_path / "kept.pt")
    folder = tmp_path / "model"
    laying.widened(vae).save_pretrained(tmp_path / "vae")
    read = AutoencoderKL.from_pretrained(tmp_path / "vae")
    for _ in range(2):  # written twice
        export.export(
            folder, autoencoder=read, encoder=encoder, tokenizer=words, denoiser=unet,
            words=["a", "disc"],
            defaults={"width": 64, "height": 64, "steps": 2, "guidance": 2.0, "sampler": "DDIM"},
        )  # fmt: skip
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a disc", num_inference_steps=2, width=64, height=64, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    assert (folder / "words.txt").read_text() == "a\ndisc\n"
    assert not [file for file in folder.rglob("*.json") if str(tmp_path) in file.read_text(encoding="utf-8")]
    assert unet.dtype == torch.float32  # export leaves the trained one alone
