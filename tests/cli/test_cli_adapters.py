"""--lora, --embedding, --vae and tags in prompts, from the words typed to the image's own notes, on tiny models."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_run import Outcome, sdcli
from safetensors.torch import save_file

from scripts import make_checkpoint
from sdcli import schema
from sdcli.asking import adapters
from sdcli.errors import BadFile
from sdcli.models import lora, resolve
from sdcli.plan.plan import Setup
from sdcli.record.metadata import read as metadata

torch = pytest.importorskip("torch")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hobbyist's disk: models/tiny, models/Lora/*.safetensors, models/embeddings, models/vae."""
    root = tmp_path_factory.mktemp("shelf") / "models"
    make_checkpoint.write_folder(root / "tiny", "sd15", tiny=True)
    for folder in ("Lora", "embeddings", "vae"):
        (root / folder).mkdir()
    write_lora(root / "Lora" / "ink wash.safetensors", 1)
    write_lora(root / "Lora" / "pencil.safetensors", 2, stray=True)
    generator = torch.Generator().manual_seed(3)
    save_file({"emb_params": torch.randn((2, 32), generator=generator)}, root / "embeddings" / "mycat.safetensors")
    make_checkpoint.write_folder(root / "other", "sd15", tiny=True, seed=9)
    stored = (root / "other" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    (root / "vae" / "sharp.safetensors").write_bytes(stored)
    return root


def write_lora(path: Path, seed: int, *, stray: bool = False) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = resolve.at(path.parents[1] / "tiny")
    layers = lora.layers({name: part.config for name, part in model.components.items() if name != "vae"})
    stored: dict[str, Any] = {}
    for name, layer in layers.items():
        if name.startswith("lora_") and len(layer.shape) == 2:
            stored[f"{name}.lora_down.weight"] = torch.randn((4, layer.shape[1]), generator=generator) * 0.2
            stored[f"{name}.lora_up.weight"] = torch.randn((layer.shape[0], 4), generator=generator) * 0.2
            stored[f"{name}.alpha"] = torch.tensor(4.0)
    if stray:
        stored["lora_unet_no_such_layer.lora_down.weight"] = torch.zeros(4, 8)
        stored["lora_unet_no_such_layer.lora_up.weight"] = torch.zeros(8, 4)
    save_file(stored, path)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Typed:
    """sdcli generate on the tiny model, in few steps."""

    def __init__(self, shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.shelf, self.capfd = shelf, capfd

    def __call__(self, *words: str, command: str = "generate") -> Outcome:
        more = () if "-m" in words else ("-m", str(self.shelf / "tiny"))
        usual = ("--size", "64x64", "-s", "2", "--seed", "5", "--dtype", "fp32")
        return sdcli(self.capfd, command, *words, *more, *usual)

    def image(self, *words: str) -> dict[str, Any]:
        done = self(*words, "--json")
        assert done.code == 0, done.out
        stored: dict[str, Any] = done.json["images"][0]
        return stored

    def pixels(self, *words: str) -> str:
        return str(self.image(*words)["pixel_sha256"])

    def adapters(self, *words: str) -> list[dict[str, Any]]:
        done = self(*words, "--json", command="plan")
        assert done.code == 0, done.out
        stored: list[dict[str, Any]] = done.json["setup"]["adapters"]
        return stored


@pytest.fixture
def typed(shelf: Path, capfd: pytest.CaptureFixture[str]) -> Typed:
    return Typed(shelf, capfd)


# --- what is drawn


def test_a_lora_by_path_by_name_and_by_tag_draws_the_same_image(typed: Typed, shelf: Path) -> None:
    ink = shelf / "Lora" / "ink wash.safetensors"
    plain = typed.pixels("a cat")
    by_path = typed.pixels("a cat", "--lora", f"{ink}:0.7")
    assert by_path != plain
    assert typed.pixels("a cat", "--lora", "ink wash:0.7") == by_path
    tagged = typed.image("a cat <lora:ink wash:0.7>")
    assert (tagged["pixel_sha256"], tagged["prompt"]) == (by_path, "a cat")
    assert typed.pixels("a cat", "--lora", str(ink)) != by_path
    assert typed.pixels("a cat", "--lora", f"{ink}:0") == plain


def test_an_embedding_and_a_vae_change_the_image_and_are_found_by_name(typed: Typed, shelf: Path) -> None:
    plain = typed.pixels("a mycat")
    learned = typed.image("a mycat", "--embedding", "mycat")
    assert learned["pixel_sha256"] != plain and learned["tokens"] == 3
    file = shelf / "embeddings" / "mycat.safetensors"
    assert typed.pixels("a zzz", "--embedding", f"{file}:zzz") == learned["pixel_sha256"]
    decoded = typed.pixels("a mycat", "--vae", "sharp")
    assert decoded not in (plain, learned["pixel_sha256"])
    assert typed.pixels("a mycat", "--vae", str(shelf / "vae" / "sharp.safetensors")) == decoded


def test_names_are_found_in_the_folders_of_the_config_file(typed: Typed, shelf: Path, own_folders: Path) -> None:
    away = own_folders / "away"
    (away / "deep").mkdir(parents=True)
    (away / "deep" / "far.safetensors").write_bytes((shelf / "Lora" / "pencil.safetensors").read_bytes())
    assert typed("a cat", "--lora", "far").code == 3
    (own_folders / "config").mkdir()
    (own_folders / "config" / "config.toml").write_text(f"folders = [{json.dumps(str(away))}]\n")
    assert typed.pixels("a cat", "--lora", "far") == typed.pixels("a cat", "--lora", "pencil")


# --- what is recorded


def test_the_plan_has_hashes_scales_and_matches_and_no_path(typed: Typed, shelf: Path) -> None:
    words = ("a cat <lora:pencil>", "--lora", "ink wash:-0.25", "--embedding", "mycat:my word", "--vae", "sharp")
    stored = typed.adapters(*words)
    assert [(one["kind"], one["name"], one["word"], one["scale"]) for one in stored] == [
        ("lora", "ink wash", "", -0.25), ("lora", "pencil", "", 1.0), ("embedding", "mycat", "my word", 1.0),
        ("vae", "sharp", "", 1.0),
    ]  # fmt: skip
    for one, folder in zip(stored, ("Lora", "Lora", "embeddings", "vae"), strict=True):
        file = shelf / folder / f"{one['name']}.safetensors"
        assert one["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert "path" not in one
    assert (stored[0]["matched"], stored[0]["unmatched"], stored[1]["unmatched"]) == (stored[1]["matched"], 0, 1)


def test_layers_that_fit_nothing_are_told(typed: Typed) -> None:
    done = typed("a cat", "--lora", "pencil", command="plan")
    assert "with LoRA pencil ×1" in done.err + done.out
    warnings = typed("a cat", "--lora", "pencil", "--json", command="plan").json["warnings"]
    (message,) = [one["message"] for one in warnings if one["code"] == "lora-unmatched"]
    assert message.startswith("1 of ") and "pencil" in message


def test_an_image_says_what_it_was_drawn_with_and_is_drawn_again(typed: Typed, shelf: Path) -> None:
    words = ("a mycat", "--lora", "ink wash:0.5", "--embedding", "mycat", "--vae", "sharp")
    first = typed.image(*words)
    stored = metadata.read(first["path"])
    assert (stored.values["lora"], stored.values["embeddings"]) == (("ink wash:0.5",), ("mycat:mycat",))
    again = typed.image("--settings-from", first["path"])
    assert again["pixel_sha256"] == first["pixel_sha256"]


def test_the_text_for_other_programs_has_the_tags_and_the_hashes_galleries_know(typed: Typed, shelf: Path) -> None:
    words = ("a mycat", "--lora", "ink wash:0.5", "--embedding", "mycat", "--vae", "sharp", "--metadata", "a1111")
    stored = metadata.read(typed.image(*words)["path"])
    assert stored.values["prompts"] == ("a mycat <lora:ink wash:0.5>",)
    ink = (shelf / "Lora" / "ink wash.safetensors").read_bytes()
    tensors = ink[8 + int.from_bytes(ink[:8], "little") :]
    assert stored.unknown["Lora hashes"] == f"ink wash: {hashlib.sha256(tensors).hexdigest()[:12]}"
    assert stored.unknown["VAE"] == "sharp" and len(stored.unknown["VAE hash"]) == 10
    assert stored.unknown["TI hashes"].startswith("mycat: ")


def test_an_independent_reader_still_finds_its_way_past_the_hashes(typed: Typed) -> None:
    """It knows no quoted values, so it passes over `Lora hashes`; all that stands around them must stay readable."""
    from sd_parsers import ParserManager

    words = ("a cat", "--lora", "ink wash:0.5", "--lora", "pencil:-0.25", "--metadata", "a1111")
    parsed = ParserManager().parse(typed.image(*words)["path"])
    assert parsed is not None
    assert [one.value for one in parsed.prompts] == ["a cat <lora:ink wash:0.5> <lora:pencil:-0.25>"]
    (sampler,) = parsed.samplers
    assert (sampler.parameters["seed"], sampler.parameters["steps"]) == ("5", "2")
    assert parsed.metadata["Size"] == "64x64" and parsed.metadata["Version"].startswith("sdcli")


# --- embeddings that the prompt names


@pytest.fixture
def learned(shelf: Path, own_folders: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """An added folder with an embedding for the tiny model, and one for another family."""
    away = own_folders / "away"
    away.mkdir()
    (away / "My Cat.safetensors").write_bytes((shelf / "embeddings" / "mycat.safetensors").read_bytes())
    save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, away / "bigword.safetensors")
    save_file({"<red-fox>": torch.zeros(2, 768)}, away / "learned_embeds.safetensors")
    assert sdcli(capfd, "models", "add", str(away)).code == 0
    return away


def test_a_prompt_that_names_an_embedding_of_an_added_folder_learns_it(typed: Typed, learned: Path) -> None:
    plain = typed.image("a dog")
    assert plain["pixel_sha256"] == typed.pixels("a dog", "--embedding", str(learned / "My Cat.safetensors"))
    expected = typed.pixels("a my cat!", "--embedding", str(learned / "My Cat.safetensors"))
    named = typed.image("a my cat!")
    assert named["pixel_sha256"] == expected
    stored = metadata.read(named["path"])
    assert stored.values["embeddings"] == ("My Cat:My Cat",)
    assert "with embedding My Cat" in typed("a (my cat:1.2)").err
    assert [one["word"] for one in typed.adapters("a dog", "--negative-prompt", "MY CAT, blurry")] == ["My Cat"]
    for words in ("a mycat", "my catalogue", "army cat"):
        assert typed.adapters(words) == []


def test_a_word_whose_embedding_is_for_another_family_is_a_plain_word_and_that_is_said(
    typed: Typed, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = typed("a bigword sleeps", "--json")
    assert done.code == 0 and done.json["plan"]["setup"].get("adapters", []) == []
    (message,) = [one["message"] for one in done.json["warnings"] if one["code"] == "embedding-passed-over"]
    assert message.startswith('"bigword" in the prompt is a plain word')
    assert "an embedding for SDXL" in message and "Stable Diffusion 1.5" in message
    assert "learned_embeds" in typed("a <red-fox> sleeps").err
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\na bigword sleeps\n"))
    assert typed("--prompts", "-", "--engine", "fake").code == 0
    done = typed("a dog", "--embedding", str(learned / "bigword.safetensors"))  # asked for by name: an error
    assert done.code == 9 and "an embedding for SDXL" in done.err


def test_of_two_embeddings_of_one_name_the_one_that_fits_is_taken(
    typed: Typed, learned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (learned / "xl").mkdir()
    save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, learned / "xl" / "My Cat.safetensors")
    sdcli(capfd, "models")
    assert [one["word"] for one in typed.adapters("a my cat")] == ["My Cat"]
    (learned / "two").mkdir()
    (learned / "two" / "My Cat.safetensors").write_bytes((learned / "My Cat.safetensors").read_bytes())
    sdcli(capfd, "models")
    done = typed("a my cat")
    assert done.code == 2 and "is 2 embeddings" in done.err


def test_the_longest_name_is_meant_and_a_flag_goes_before(
    typed: Typed, learned: Path, capfd: pytest.CaptureFixture[str], shelf: Path
) -> None:
    (learned / "cat.safetensors").write_bytes((learned / "My Cat.safetensors").read_bytes())
    sdcli(capfd, "models")
    assert [one["word"] for one in typed.adapters("a my cat")] == ["My Cat"]
    assert [one["word"] for one in typed.adapters("a my cat and a cat")] == ["My Cat", "cat"]
    file = shelf / "embeddings" / "mycat.safetensors"
    (stored,) = typed.adapters("a cat", "--embedding", f"{file}:cat")
    assert stored["name"] == "mycat"


def test_words_of_prompts_are_looked_up_in_the_last_listing_and_nowhere_else(
    typed: Typed, learned: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file that came since is found by `sdcli models`; one that went is a word again. No folder is read."""
    (learned / "newer.safetensors").write_bytes((learned / "My Cat.safetensors").read_bytes())
    looked: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": looked.append(str(path)) or real(path))  # type: ignore[func-returns-value]
    assert typed.adapters("a newer dog") == []
    assert not [place for place in looked if place.startswith(str(learned))]
    monkeypatch.undo()
    monkeypatch.chdir(learned.parent)
    monkeypatch.setenv("SDCLI_HOME", str(learned.parent))
    sdcli(capfd, "models")
    assert [one["name"] for one in typed.adapters("a newer dog")] == ["newer"]
    (learned / "newer.safetensors").unlink()
    assert typed.adapters("a newer dog") == []


def test_prompts_that_come_one_by_one_learn_what_the_first_does(
    typed: Typed, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a my cat\na dog\na MY CAT asleep\n"))
    done = typed("--prompts", "-", "--engine", "fake", "--json")
    assert done.code == 0 and len(done.json["images"]) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\na my cat\n"))
    done = typed("--prompts", "-", "--engine", "fake")
    assert done.code == 2 and 'prompt 2 names the embedding "my cat"' in done.err and "--embedding" in done.err


# --- what is refused


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("a cat", "--lora", "ink"), 3, 'no LoRA "ink"'),
        (("a cat <lora:ink was:1>",), 3, "near: ink wash"),
        (("a cat", "--lora", "gone.safetensors:0.5"), 3, "there is no file gone.safetensors"),
        (("a cat", "--embedding", "dog"), 3, 'no embedding "dog"'),
        (("a cat", "--vae", "dull"), 3, 'no VAE "dull"'),
        (("a cat", "--vae", "pencil"), 9, "is a LoRA, not a VAE"),
        (("a cat", "--lora", "sharp"), 9, "is a VAE, not a LoRA"),
        (("a cat", "--embedding", "pencil"), 9, "is a LoRA, not an embedding"),
        (("a cat", "--lora", "mycat"), 9, "not a LoRA"),
        (("<lora:pencil:1>",), 2, "contains only a LoRA"),
        (("-p", "a cat <lora:pencil:1>", "-p", "a big dog"), 2, "prompt 2 asks for other LoRAs"),
        (("a cat <lora:../Lora/pencil:1>",), 3, "no LoRA"),
    ],
)
def test_mistakes_end_before_anything_is_loaded(
    typed: Typed, words: tuple[str, ...], code: int, message: str, here: Path
) -> None:
    done = typed(*words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err, done.err
    assert "try:" in done.err
    assert not list(here.iterdir())


def test_a_lora_of_another_family_names_both(typed: Typed, here: Path) -> None:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.lora_down.weight": torch.zeros(4, 2048), f"{name}.lora_up.weight": torch.zeros(640, 4)},
              here / "xl.safetensors")  # fmt: skip
    done = typed("a cat", "--lora", "xl.safetensors")
    assert done.code == 9
    assert "a LoRA for SDXL" in done.err and "Stable Diffusion 1.5" in done.err


def test_an_embedding_of_another_family_names_both(typed: Typed, here: Path) -> None:
    save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, here / "xl.safetensors")
    done = typed("a cat", "--embedding", "xl.safetensors")
    assert done.code == 9
    assert "an embedding for SDXL" in done.err and "Stable Diffusion 1.5" in done.err


@pytest.mark.parametrize("flag", ["--lora", "--embedding", "--vae"])
def test_a_pickle_is_refused_as_unsafe(typed: Typed, here: Path, flag: str) -> None:
    torch.save({"string_to_param": {"*": torch.zeros(1, 32)}}, here / "learned.pt")
    done = typed("a cat", flag, "learned.pt")
    assert done.code == 6 and "run code" in done.err


# --- spelling


def test_a_name_with_colons_that_exists_wins_over_a_weight(typed: Typed, shelf: Path, here: Path) -> None:
    stored = (shelf / "Lora" / "pencil.safetensors").read_bytes()
    try:
        (here / "odd:0.5").write_bytes(stored)
    except OSError:
        pytest.skip("no colons in names here")
    assert [one["scale"] for one in typed.adapters("a cat", "--lora", "odd:0.5")] == [1.0]
    assert [one["scale"] for one in typed.adapters("a cat", "--lora", "odd:0.5:0.5")] == [0.5]
    done = typed("a cat", "--lora", "odd:0.5:much")
    assert done.code == 2 and '"much" is not a weight' in done.err


def test_the_environment_and_the_config_file_name_adapters_too(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_LORA", "pencil:0.5")
    monkeypatch.setenv("SDCLI_VAE_FILE", "sharp")
    assert [(one["name"], one["scale"]) for one in typed.adapters("a cat")] == [("pencil", 0.5), ("sharp", 1.0)]
    assert [one["name"] for one in typed.adapters("a cat", "--lora", "ink wash")] == ["ink wash", "sharp"]


# --- drawn again later


def test_recorded_adapters_are_found_again_by_name_and_only_the_very_same_file_will_do(
    typed: Typed, shelf: Path, here: Path
) -> None:
    recorded = schema.from_json(
        Setup, {"adapters": typed.adapters("a cat", "--lora", "ink wash:0.5")}, "a plan"
    ).adapters
    assert [one.path for one in recorded] == [None]
    model = resolve.at(shelf / "tiny")
    (stored,) = adapters.located(recorded, model, ())
    assert (stored.path, stored.scale) == (str(shelf / "Lora" / "ink wash.safetensors"), 0.5)
    (changed,) = [replace(one, sha256="0" * 64) for one in recorded]
    with pytest.raises(BadFile, match="is not the LoRA recorded"):
        adapters.located((changed,), model, ())
