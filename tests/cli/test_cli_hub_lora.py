"""--lora with a Hub id: fetched as a model is, refused before its weights where it does not fit, recorded by commit."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_run import Outcome, sdcli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import model_files as make
from fake_hub import LARGE, FakeHub, Fault, repository

from sdcli import schema
from sdcli.asking import adapters
from sdcli.errors import BadFile, ModelMissing, SdcliError
from sdcli.models import hub, hub_cache, hub_connection, hub_name, resolve
from sdcli.models.hub_connection import Connection
from sdcli.plan.plan import Adapter, Setup

ID, COMMIT = "someone/ink", "d" * 40
DRAW = ("--engine", "fake", "--size", "64x64", "--seed", "1", "--device", "cpu")
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn{}.to_k"
USUAL = "pytorch_lora_weights.safetensors"


def lora(width: int = 768, side: int = 320, seed: int = 0, ending: str = "lora_{}.weight") -> bytes:
    """Two layers of SD1.5, or of another width, in diffusers' names."""
    shapes: dict[str, list[int]] = {}
    for number, wide in ((1, side), (2, width)):
        shapes[f"{LAYER.format(number)}.{ending.format('A')}"] = [4, wide]
        shapes[f"{LAYER.format(number)}.{ending.format('B')}"] = [side, 4]
    table: dict[str, Any] = {}
    position = 0
    for name, (rows, columns) in shapes.items():
        table[name] = {
            "dtype": "F16",
            "shape": [rows, columns],
            "data_offsets": [position, position + rows * columns * 2],
        }
        position += rows * columns * 2
    head = json.dumps(table).encode()
    held = bytes(byte & 0xBF for byte in random.Random(seed).randbytes(position))
    return len(head).to_bytes(8, "little") + head + held


@pytest.fixture
def ink(server: FakeHub) -> FakeHub:
    files = {"ink.safetensors": lora(), "README.md": b"x", "old.bin": b"x"}
    server.repositories[ID] = repository(files, commit=COMMIT, card={"license": "mit"})
    make.folder(Path("sd"))  # a whole SD1.5, though its weights are holes
    return server


@pytest.fixture
def place(own_folders: Path) -> Path:
    return own_folders / "huggingface/hub/models--someone--ink"


def generate(capfd: pytest.CaptureFixture[str], *words: str) -> Outcome:
    return sdcli(capfd, "generate", "a cat", "-m", "./sd", *DRAW, *words)


def adapter(done: Outcome) -> dict[str, Any]:
    (found,) = done.json["plan"]["setup"]["adapters"]
    return dict(found)


def test_a_lora_is_fetched_shown_first_and_recorded_with_its_commit(
    ink: FakeHub, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = generate(capfd, "--lora", f"{ID}:0.5", "--json")
    assert done.code == 0, done.err
    found = adapter(done)
    assert (found["name"], found["scale"], found["matched"]) == ("ink", 0.5, 2)
    assert found["hub"] == f"{ID}@{COMMIT}/ink.safetensors"
    first, second = done.err.splitlines()[:2]
    assert first == f"{ID}/ink.safetensors @ddddddd, a LoRA for Stable Diffusion 1.5"
    assert second.startswith("  licence mit, open to all · ") and second.endswith(" free")
    files = {path.name for path in (place / "snapshots" / COMMIT).rglob("*")}
    assert files == {"ink.safetensors"}


def test_a_second_time_and_by_its_commit_nothing_is_asked(ink: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    first = adapter(generate(capfd, "--lora", ID, "--json"))
    ink.log.clear()
    for name in (ID, f"{ID}/ink.safetensors", f"{ID}@{COMMIT}", first["hub"], f"{ID}@ddddddd"):
        assert adapter(generate(capfd, "--lora", name, "--json", "--offline")) == first
    assert adapter(generate(capfd, "--lora", f"{ID}:1", "--json")) == first
    assert not ink.log


def test_the_commit_is_the_one_that_was_shown_though_main_moves(
    ink: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    held = ink.repositories[ID]
    held.commits["e" * 40] = {"ink.safetensors": lora(seed=1)}

    def move(asked: Any) -> None:
        if not asked.path.startswith("/api/"):
            held.branches["main"] = "e" * 40

    ink.before = move
    assert adapter(generate(capfd, "--lora", ID, "--json"))["hub"].split("@")[1].startswith(COMMIT)


def test_of_several_files_one_is_named_or_all_are_listed(ink: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    files = {"b/pencil 2.safetensors": lora(seed=1), "ink.safetensors": lora()}
    ink.repositories[ID] = repository(files, commit=COMMIT)
    done = generate(capfd, "--lora", f"{ID}:0.5")
    assert done.code == 2 and "b/pencil 2.safetensors, ink.safetensors" in done.err
    assert f'--lora "{ID}/b/pencil 2.safetensors"' in done.err
    named = adapter(generate(capfd, "--lora", f"{ID}/b/pencil 2.safetensors:0.5", "--json"))
    assert (named["name"], named["scale"]) == ("pencil 2", 0.5)
    done = generate(capfd, "--lora", f"{ID}/brush.safetensors")
    assert done.code == 3 and "holds no brush.safetensors; it holds b/pencil 2.safetensors" in done.err


def test_the_name_that_diffusers_gives_goes_before_others_and_is_no_name(
    ink: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    ink.repositories[ID] = repository(
        {"embeddings.safetensors": b"x", USUAL: lora(), "checkpoint-5/a.safetensors": b"x"}
    )
    assert adapter(generate(capfd, "--lora", ID, "--json"))["name"] == "ink"


@pytest.mark.parametrize(
    ("width", "told"), [(2048, "a LoRA for SDXL"), (1024, "a LoRA for Stable Diffusion 2")]
)  # fmt: skip
def test_one_for_another_family_is_refused_before_its_weights(
    ink: FakeHub, place: Path, capfd: pytest.CaptureFixture[str], width: int, told: str
) -> None:
    ink.repositories[ID] = repository({"ink.safetensors": lora(width)}, commit=COMMIT)
    done = generate(capfd, "--lora", ID)
    assert done.code == 9 and told in done.err and "Stable Diffusion 1.5" in done.err
    assert not place.exists()


@pytest.mark.parametrize(
    ("files", "code", "told"),
    [
        ({"ink.bin": b"x"}, 6, "only pickles"),
        ({"README.md": b"x"}, 9, "no .safetensors file"),
        ({"model_index.json": b"{}", "ink.safetensors": lora()}, 9, "a whole model"),
        ({"ink.safetensors": b"<html>" * 100}, 9, "web page"),
        ({"ink.safetensors": b"PK\x03\x04" + b"x" * 600}, 6, "run code"),
        ({"ink.safetensors": lora(ending="hada_{}.x")}, 9, "not a LoRA"),
    ],
)
def test_what_is_none_is_refused_before_its_weights(
    ink: FakeHub, place: Path, capfd: pytest.CaptureFixture[str], files: dict[str, bytes], code: int, told: str
) -> None:
    ink.repositories[ID] = repository(files, commit=COMMIT)
    done = generate(capfd, "--lora", ID)
    assert (done.code, done.out) == (code, "") and told in done.err, done.err
    assert not place.exists()


@pytest.mark.parametrize(
    "words", [("plan", "a cat", "-m", "./sd"), ("generate", "a cat", "-m", "./sd", *DRAW, "--offline")]
)
def test_a_plan_and_offline_never_connect_and_say_what_to_pull(
    ink: FakeHub, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    done = sdcli(capfd, *words, "--lora", f"{ID}:0.5")
    assert done.code == 3 and f'sdcli pull "{ID}"' in done.err and not ink.log
    assert sdcli(capfd, "pull", ID).code == 0
    assert sdcli(capfd, *words, "--lora", f"{ID}:0.5").code == 0


def test_a_path_is_meant_where_there_is_its_folder(ink: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    Path("someone").mkdir()
    done = generate(capfd, "--lora", ID)
    assert done.code == 3 and f"there is no file {ID}" in done.err and not ink.log
    (Path("someone") / "ink.safetensors").write_bytes(lora(seed=9))
    assert adapter(generate(capfd, "--lora", f"{ID}.safetensors", "--json"))["hub"] == ""
    done = generate(capfd, "--lora", "gone/ink.safetensors")
    assert done.code == 3 and "there is no file" in done.err and not ink.log


def test_a_gated_one_says_page_and_command(ink: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    ink.repositories[ID].gated = "auto"
    done = generate(capfd, "--lora", ID, "--json")
    assert done.code == 3 and done.json["error"]["type"] == "gated"
    assert f"{ink.url}/{ID}" in done.json["error"]["hint"]


def test_a_tag_in_a_prompt_fetches_nothing(ink: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", f"a cat <lora:{ID}:1>", "-m", "./sd", *DRAW)
    assert done.code == 3 and not ink.log


def test_other_bytes_under_its_name_in_the_cache_are_not_loaded(
    ink: FakeHub, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert generate(capfd, "--lora", ID).code == 0
    (blob,) = (place / "blobs").iterdir()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    done = generate(capfd, "--lora", ID)
    assert done.code == 9 and "differs from the Hub's file" in done.err and f"sdcli models rm {ID}" in done.err


def test_the_settings_that_peft_keeps_beside_its_file_come_along(
    ink: FakeHub, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held = {"adapter/adapter_model.safetensors": lora(), "adapter/adapter_config.json": b'{"lora_alpha": 8}'}
    ink.repositories[ID] = repository(held, commit=COMMIT)
    assert generate(capfd, "--lora", ID).code == 0
    assert (place / "snapshots" / COMMIT / "adapter/adapter_config.json").is_file()


def test_a_recorded_one_is_found_again_by_its_commit(ink: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    told = generate(capfd, "--lora", f"{ID}:0.5", "--json").json["plan"]["setup"]
    recorded = schema.from_json(Setup, told, "a plan").adapters
    model = resolve.resolve("sd15")
    (found,) = adapters.located(recorded, model, ())
    assert Path(str(found.path)).is_file() and found.hub == recorded[0].hub
    assert sdcli(capfd, "models", "rm", ID).code == 0
    with pytest.raises(ModelMissing, match="is not in the Hugging Face cache") as refused:
        adapters.located(recorded, model, ())
    assert recorded[0].hub in refused.value.hint


def test_an_image_with_one_is_drawn_again_by_its_commit(ink: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    (first,) = generate(capfd, "--lora", f"{ID}:0.5", "--json").json["images"]
    ink.repositories[ID].commits["e" * 40] = {"ink.safetensors": lora(seed=1)}
    ink.repositories[ID].branches["main"] = "e" * 40
    ink.log.clear()
    again = generate(capfd, "--settings-from", first["path"], "--json")
    assert adapter(again)["hub"] == f"{ID}@{COMMIT}/ink.safetensors" and adapter(again)["scale"] == 0.5
    assert not ink.log


@pytest.mark.parametrize(
    "hub", ["../../etc/passwd", "a/b", "a/b/c.safetensors", f"a/b@{COMMIT}", "a/b@main/c.safetensors"]
)
def test_what_an_image_says_of_the_hub_is_no_path(hub: str) -> None:
    """Images come from anyone: only a whole name, commit and file included, is asked for again."""
    from sdcli.record.metadata import own

    setup = Setup(adapters=(Adapter(name="ink", sha256="", scale=0.5, hub=hub),))
    assert own._beside(setup) == {"lora": ("ink:0.5",)}
    whole = f"a/b@{COMMIT}/c.safetensors"
    setup = Setup(adapters=(Adapter(name="ink", sha256="", scale=0.5, hub=whole),))
    assert own._beside(setup) == {"lora": (f"{whole}:0.5",)}


# --- pull


def test_pull_brings_a_single_file_and_prints_where_it_is(
    ink: FakeHub, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ink.repositories[ID] = repository({"a.safetensors": lora(), "b.safetensors": lora(seed=1)}, commit=COMMIT)
    listed = sdcli(capfd, "pull", ID)
    assert listed.code == 2 and f'sdcli pull "{ID}/a.safetensors"' in listed.err
    done = sdcli(capfd, "pull", f"{ID}/b.safetensors")
    assert done.out == f"{place / 'snapshots' / COMMIT / 'b.safetensors'}\n" and done.code == 0, done.err
    ink.log.clear()
    told = sdcli(capfd, "pull", f"{ID}@{COMMIT}/b.safetensors", "--json").json
    assert (told["kind"], told["family"], told["revision"], told["fetched_bytes"]) == ("lora", "sd15", COMMIT, 0)
    assert not ink.log
    assert sdcli(capfd, "pull", f"{ID}@{COMMIT}/b.safetensors", "--revision", "main").code == 2
    assert sdcli(capfd, "pull", f"{ID}/a.safetensors", "--offline").code == 3 and not ink.log


# --- names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a/b", ("a/b", None, None)),
        ("a/b@v1.0", ("a/b", "v1.0", None)),
        ("a/b/c d.safetensors", ("a/b", None, "c d.safetensors")),
        ("a/b@main/x/c.safetensors", ("a/b", "main", "x/c.safetensors")),
    ],
)
def test_names_on_the_hub_are_taken_apart_and_put_together(text: str, parts: tuple[str | None, ...]) -> None:
    found = hub_name.parse(text)
    assert found is not None and (found.repository, found.revision, found.file) == parts and str(found) == text


@pytest.mark.parametrize(
    "text",
    ["a", "", "./a/b", "../a", "~/a", "/a/b", "a/b.safetensors", "a/b/c", "a/b/../c.safetensors", "a/b//c.safetensors",
     "a/b/c.bin", "a/b/c\\d.safetensors", "a/b@/c.safetensors", "a b/c", "a/b/c\n.safetensors", "C:/a/b.safetensors"],
)  # fmt: skip
def test_what_cannot_be_a_name_on_the_hub_is_none(text: str) -> None:
    assert hub_name.parse(text) is None


# --- faults


def test_30_random_sequences_of_faults_end_in_the_right_file_or_a_typed_error(
    ink: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hub_connection, "PIECE", 1000)
    chance = random.Random(3)
    name = hub_name.HubName(ID)
    line = Connection(endpoint=ink.url)
    right = ink.repositories[ID].commits[COMMIT]["ink.safetensors"]
    ends: dict[str, int] = {}
    for number in range(30):
        cache = tmp_path / str(number)
        kinds = [chance.choice(["status", "cut", "cut", "wrong", "drip", "whole", "reset"]) for _ in range(8)]
        ink.faults = [
            Fault(kind, 503 if kind == "status" else chance.randrange(1 << 20), only=LARGE if kind == "wrong" else "")
            for kind in kinds[: chance.randrange(1, 9)]
        ]
        try:
            hub.fetch(line, hub.offer_file(line, name, cache))
            end = "whole"
        except SdcliError as error:
            assert error.message and error.hint and error.code in (3, 9), error
            end = error.type
        ends[end] = ends.get(end, 0) + 1
        here = hub_cache.file(cache, name)
        assert (here is not None) == (end == "whole")
        assert here is None or here.path.read_bytes() == right
        ink.faults.clear()
        hub.fetch(line, hub.offer_file(line, name, cache))
        here = hub_cache.file(cache, name)
        assert here is not None and here.path.read_bytes() == right
        assert not list(cache.rglob("*.incomplete"))
    assert ends.keys() >= {"whole", "offline"}, ends


def test_a_header_altered_on_the_way_once_refuses_nothing(ink: FakeHub, tmp_path: Path) -> None:
    line = Connection(endpoint=ink.url)
    blob = hashlib.sha256(lora()).hexdigest()
    ink.faults = [Fault("wrong", 8, only=blob)]
    assert hub.offer_file(line, hub_name.HubName(ID), tmp_path).kind == "lora"
    assert not ink.faults
    ink.faults = [Fault("wrong", 8, only=blob)] * 2
    with pytest.raises(BadFile):
        hub.offer_file(line, hub_name.HubName(ID), tmp_path)
