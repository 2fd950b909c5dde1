"""Settings inside images: written as others read them, read back with bounds."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_samples import SIDE, job, pixels, plan

from scripts.proofs.damaged import header, png
from sdcli import schema
from sdcli.errors import BadFile, SdcliError, Usage
from sdcli.plan.plan import Adapter, Setup
from sdcli.record import encode as encoding
from sdcli.record.metadata import a1111, own
from sdcli.record.metadata.a1111 import Infotext
from sdcli.record.metadata.own import BatchPosition, ImageRecord, RecordedModel
from sdcli.record.metadata.read import read
from sdcli.request.samplers import SAMPLERS

SETUP = Setup(dtype="fp16", threads=2)
MODEL = RecordedModel(name="sd15", revision="451f", hash="6ce0161689")


def record(**fields: Any) -> ImageRecord:
    defaults: dict[str, Any] = {
        "version": "0.1.0", "job": job(), "setup": SETUP, "model": MODEL, "scheduler": {"beta_start": 0.00085},
        "pixel_sha256": hashlib.sha256(pixels(42)).hexdigest(), "environment": {"torch": "2.13.0"},
    }  # fmt: skip
    return ImageRecord(**{**defaults, **fields})


def written(path: Path, format: str, of: ImageRecord, metadata: str = "full") -> Path:
    file = path / f"image.{format}"
    file.write_bytes(encoding.encode(pixels(42), SIDE, SIDE, format, of, metadata).data)
    return file


# --- the text of A1111


def test_the_text_is_the_web_uis_to_the_letter() -> None:
    one = job(prompt="a cat,\n(red:1.2)", negative_prompt="blurry", steps=20, width=512, height=768, clip_skip=2)
    assert a1111.write(a1111.infotext(one, SETUP, MODEL, "0.1.0")) == (
        "a cat,\n(red:1.2)\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 42, Size: 512x768, "
        "Model hash: 6ce0161689, Model: sd15, Clip skip: 2, RNG: CPU, Version: sdcli 0.1.0"
    )


def test_whose_noise_it_is_drawn_from_is_said_and_read_back() -> None:
    for rng, said in (("cpu", "CPU"), ("nv", "NV")):
        text = a1111.write(a1111.infotext(job(rng=rng), SETUP, MODEL, "0.1.0"))
        assert f", RNG: {said}, Version" in text
        values, left = a1111.values(a1111.read(text))
        assert values["rng"] == rng and "RNG" not in left


@pytest.mark.parametrize(
    ("pairs", "rng", "left"),
    [
        ("RNG: GPU", "nv", None),
        ("RNG: NV, Version: v1.10.1", "nv", None),
        ("RNG: CPU, Version: v1.10.1", "cpu", None),
        ("RNG: Dice, Version: v1.10.1", None, "Dice"),
        ("Version: v1.6.0-2-g4afaaf8a", "nv", None),  # the web UI leaves out its default
        ("Version: f2.0.1v1.10.1-previous-669-gdfdcbab6", "nv", None),
        ("Version: ComfyUI", None, None),
        ("Version: sdcli 0.1.0", None, None),
        ("Size: 64x64", None, None),
    ],
)
def test_the_web_ui_draws_as_a_gpu_unless_it_says_otherwise(pairs: str, rng: str | None, left: str | None) -> None:
    values, rest = a1111.values(a1111.read(f"a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, {pairs}"))
    assert values.get("rng") == rng and rest.get("RNG") == left


def test_values_with_a_comma_colon_or_newline_are_json_strings() -> None:
    setup = replace(SETUP, adapters=(Adapter(name="foo", sha256="aabbccddeeff00", scale=0.8),) * 2)
    text = a1111.write(a1111.infotext(job(), setup, replace(MODEL, name='my, "best": model'), "1"))
    assert 'Lora hashes: "foo: aabbccddeeff, foo: aabbccddeeff"' in text
    assert 'Model: "my, \\"best\\": model"' in text
    assert a1111.read(text).get("Model") == 'my, "best": model'


def test_a_pair_whose_key_is_its_value_is_written_as_the_key() -> None:
    text = a1111.write(a1111.infotext(job(), SETUP, replace(MODEL, name="Model"), "1"))
    assert ", Model, RNG" in text
    assert a1111.read(text).get("Model") == "Model"


def test_fewer_than_three_pairs_are_prompt() -> None:
    assert a1111.read("a cat\nSteps: 20, Seed: 1") == Infotext("a cat\nSteps: 20, Seed: 1")
    assert a1111.read("a cat\nSteps: 20, Seed: 1, Size: 8x8").prompt == "a cat"


def test_older_writers_have_the_schedule_in_the_samplers_name() -> None:
    old, _ = a1111.values(a1111.read("x\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512"))
    new, _ = a1111.values(
        a1111.read("x\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512")
    )
    assert old == new
    assert (old["sampler"], old["guidance"], old["seeds"], old["width"]) == ("DPM++ 2M Karras", 7.0, (1,), 512)


def test_other_keys_are_kept_apart_and_odd_values_are_refused() -> None:
    text = (
        "x\nSteps: many, Sampler: Euler, CFG scale: nan, Seed: -1, Size: 1e9x2, Model: ../../evil, "
        'Hires upscale: 2, Hashes: "a: b"'
    )
    values, unknown = a1111.values(a1111.read(text))
    assert values == {"prompts": ("x",), "negative_prompt": "", "sampler": "Euler"}
    assert unknown["Steps"] == "many" and unknown["Model"] == "../../evil" and unknown["Hashes"] == "a: b"


def test_a_sampler_that_is_not_offered_is_unknown_rather_than_wrong() -> None:
    values, unknown = a1111.values(a1111.read("x\nSteps: 20, Sampler: Restart, CFG scale: 7, Seed: 1, Size: 512x512"))
    assert "sampler" not in values and unknown == {"Sampler": "Restart"}


def test_every_sampler_on_offer_comes_back() -> None:
    for sampler in SAMPLERS:
        text = a1111.write(a1111.infotext(job(sampler=sampler.name), SETUP, MODEL, "1"))
        assert a1111.values(a1111.read(text))[0]["sampler"] == sampler.name


@pytest.mark.parametrize("name", ["/etc/passwd", "http://x/y", "a\\b", "..", "x.safetensors", "~", "", "-m", "a" * 200])
def test_a_models_name_from_a_file_is_never_a_path_or_a_flag(name: str) -> None:
    assert a1111.plain_name(name) is None


PROMPTS = st.lists(
    st.sampled_from(
        ["a cat", ", ", ": ", '"', "\\", "\n", "Negative prompt:", "Steps: 20", "Seed: 1, Size: 8x8, Steps: 4",
         "(x:1.2)", "[a:b:0.5]", "猫", "🐈", "\x1b[31m", "\t", "\u2028", " ", "Model", "{", "<lora:x:1>",
         "BREAK", "\r\n"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


def canonical(prompt: str) -> str:
    return prompt.replace("\r\n", "\n").replace("\r", "\n").strip()


def carries(prompt: str) -> bool:
    """All the format can carry but one thing: a line of the prompt that looks like the start of the negative."""
    return not any(line.lstrip().startswith("Negative prompt:") for line in canonical(prompt).split("\n"))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(PROMPTS, PROMPTS, PROMPTS)
def test_reading_gives_back_what_was_written(prompt: str, negative: str, name: str) -> None:
    pairs = a1111.infotext(job(prompt=prompt, negative_prompt=negative), SETUP, replace(MODEL, name=name), "1").pairs
    read_back = a1111.read(a1111.write(Infotext(prompt, negative, pairs)))
    assert read_back.pairs == pairs
    if carries(prompt):
        assert read_back == Infotext(canonical(prompt), canonical(negative), pairs)
    assert a1111.read(a1111.write(read_back)) == read_back, "once read, it never changes again"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=80), st.text(max_size=80))
def test_any_prompt_survives_in_the_form_the_format_has(prompt: str, negative: str) -> None:
    info = a1111.infotext(job(prompt=prompt, negative_prompt=negative), SETUP, MODEL, "1")
    assert a1111.read(a1111.write(info)) == info or not carries(prompt)


def test_a_negative_prompt_inside_the_prompt_is_where_the_format_itself_is_ambiguous() -> None:
    inside = a1111.write(Infotext("a\nNegative prompt: b", "", (("Steps", "1"), ("Seed", "2"), ("Size", "8x8"))))
    beside = a1111.write(Infotext("a", "b", (("Steps", "1"), ("Seed", "2"), ("Size", "8x8"))))
    assert inside == beside, "the two are the same text; our own chunk keeps them apart"


def test_a_megabyte_of_text_that_invites_backtracking_is_read_as_prompt() -> None:
    """Anything worse than linear would not end here."""
    long = "a" * 1_000_000
    for text in (long, f"x\n{long}: 1", '"' * 10**6, "a:" * 500_000, "a:," * 300_000, 'ab:"\\' * 300_000, ":" * 10**6):
        info = a1111.read(f"x\n{text}")
        assert info is not None and info.prompt == f"x\n{text}"


# --- our own chunk


def test_the_chunk_has_the_keys_of_the_schema_and_comes_back() -> None:
    of = record(batch=BatchPosition(size=2, position=1, members=(job(0), job(1))))
    data = json.loads(own.chunk(of))
    assert list(data) == [
        "schema", "version", "job", "setup", "model", "scheduler", "negative", "batch", "degraded", "enlarged",
        "pixel_sha256", "environment",
    ]  # fmt: skip
    assert data["schema"] == "sdcli.image/1"
    assert own.read(own.chunk(of)) == of


def test_a_newer_chunk_is_refused_and_an_unknown_key_is_not() -> None:
    data = {**schema.to_json(record()), "later": 1}
    assert own.read(json.dumps(data)) == record()
    with pytest.raises(BadFile, match="newer sdcli"):
        own.read(json.dumps({**data, "schema": "sdcli.image/2"}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"schema": "sdcli.image/1"}',
        "[" * 60_000,
        '{"a":' * 12_000,
        '{"a": NaN}',
        "9" * 6000,
        "x" * 70_000,
    ],
)
def test_a_damaged_chunk_is_a_bad_file(text: str) -> None:
    with pytest.raises(BadFile):
        own.read(text)


def test_the_members_of_a_batch_are_recorded() -> None:
    of = plan(images=4, batch_size=2)
    assert own.batch_position(of, 1, 3, 1, 0) == BatchPosition(size=2, position=1, members=(of.jobs[2], of.jobs[3]))
    assert own.batch_position(plan(images=1), 0, 0, 1, 0) == BatchPosition(size=1, position=0, members=())


def test_an_image_that_was_drawn_as_if_alone_is_recorded_alone() -> None:
    of = plan(images=4, batch_size=2)
    of = replace(of, request=replace(of.request, batch_invariant=True))
    assert own.batch_position(of, 1, 3, 2, 1) == BatchPosition()


def test_an_image_in_no_plan_gets_its_position_from_the_events() -> None:
    assert own.batch_position(plan(images=1), 5, 11, 2, 1) == BatchPosition(size=2, position=1, members=())


# --- whole files


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "prompt", ["a cat", "Crème brûlée", "一只猫 🐈\nin the rain", 'quote " \\ , : Negative prompt: no']
)
def test_settings_come_back_from_every_format(tmp_path: Path, format: str, prompt: str) -> None:
    of = record(job=job(prompt=prompt, negative_prompt="blurry, bad", seed=2**32 - 1, guidance=5.5, clip_skip=2))
    stored = read(written(tmp_path, format, of))
    assert (stored.dialect, stored.record) == ("sdcli", of)
    foreign = read(written(tmp_path, format, of, "a1111"))
    assert foreign.dialect == "a1111"
    for name, value in foreign.values.items():
        assert value == stored.values[name]
    assert set(stored.values) - set(foreign.values) == {"emphasis", "guess_mode"}


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_without_metadata_there_is_none(tmp_path: Path, format: str) -> None:
    file = written(tmp_path, format, record(), "none")
    assert b"cat" not in file.read_bytes()
    with pytest.raises(BadFile, match="no settings"):
        read(file)


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_less_quality_makes_a_smaller_file(format: str) -> None:
    sizes = [
        len(encoding.encode(pixels(42), SIDE, SIDE, format, record(), "none", quality).data) for quality in (20, 60, 95)
    ]
    assert sizes == sorted(set(sizes))


def test_a_png_holds_the_pixels_it_was_given() -> None:
    from PIL import Image

    data = encoding.encode(pixels(42), SIDE, SIDE, "png", record()).data
    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == pixels(42)


@pytest.mark.parametrize("prompt", ["a cat, (red:1.2)", "Crème brûlée", "一只猫 🐈\nin the rain"])
@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_an_independent_reader_finds_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, prompt: str
) -> None:
    from sd_parsers import ParserManager

    # It remembers the last image by its `id`, which the next one may be given again.
    monkeypatch.setattr("sd_parsers.extractors._jpeg_usercomment._image_id", None)
    of = record(job=job(prompt=prompt, negative_prompt="blurry, bad", seed=123, steps=20, width=512, height=768))
    parsed = ParserManager().parse(written(tmp_path, format, of))
    assert parsed is not None
    assert [p.value for p in parsed.prompts] == [prompt]
    assert [p.value for p in parsed.negative_prompts] == ["blurry, bad"]
    [sampler] = parsed.samplers
    assert (sampler.name, sampler.parameters["scheduler"]) == ("DPM++ 2M", "Karras")
    assert (sampler.parameters["seed"], sampler.parameters["steps"]) == ("123", "20")
    assert sampler.parameters["cfg_scale"] == "7.0"
    assert parsed.metadata["Size"] == "512x768"
    [model] = parsed.models
    assert (model.name, model.hash) == ("sd15", "6ce0161689")


# --- limits


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_members_go_first_then_the_environment_then_all_metadata(format: str) -> None:
    def left(of: ImageRecord) -> tuple[str, tuple[str, ...]]:
        encoded = encoding.encode(pixels(42), SIDE, SIDE, format, of)
        return encoded.metadata, encoded.left_out

    members = BatchPosition(size=200, position=0, members=tuple(job(n, prompt="m" * 400) for n in range(200)))
    assert left(record()) == ("full", ())
    assert left(record(batch=members)) == ("full", ("members",))
    assert left(record(batch=members, environment={"x": "y" * 65_000})) == ("full", ("members", "environment"))
    assert left(record(job=job(prompt="p" * 66_000))) == ("none", ())


def test_all_of_exif_stays_within_a_jpeg_segment(tmp_path: Path) -> None:
    for length in (5_000, 9_000, 10_500, 11_000, 20_000):
        of = record(job=job(prompt="猫" * length))  # six bytes each in ASCII JSON, two in the comment
        encoded = encoding.encode(pixels(42), SIDE, SIDE, "jpg", of)
        file = tmp_path / "x.jpg"
        file.write_bytes(encoded.data)
        if encoded.metadata == "full":
            assert read(file).record == of
        assert encoded.metadata == ("full" if length < 9_000 else encoded.metadata)
    assert encoded.metadata == "none"


def test_a_flat_image_is_noticed() -> None:
    def flat(data: bytes) -> bool:
        return encoding.encode(data, SIDE, SIDE, "png", record()).flat

    assert flat(bytes(SIDE * SIDE * 3))
    assert flat(bytes(n % 2 + 127 for n in range(SIDE * SIDE * 3)))
    assert not flat(pixels(42))
    assert not flat(bytes([0, 0, 0, 255, 0, 0] * (SIDE * SIDE // 2)))


# --- hostile files


def test_five_hundred_mutated_images_are_read_or_refused_in_bounds(tmp_path: Path) -> None:
    chance = random.Random(500)
    whole = [
        encoding.encode(pixels(42), SIDE, SIDE, format, record(job=job(prompt="a cat é 猫"))).data
        for format in ("png", "jpg", "webp")
    ]
    file = tmp_path / "mutated"
    understood = refused = 0
    for _ in range(510):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            kind = chance.randrange(4)
            at = chance.randrange(max(1, len(data)))
            if kind == 0 and data:
                data[at] = chance.randrange(256)
            elif kind == 1:
                del data[at : at + chance.randint(1, 40)]
            elif kind == 2:
                data[at:at] = chance.randbytes(chance.randint(1, 40))
            else:
                data = data[: max(at, 20)]
        file.write_bytes(data)
        try:
            stored = read(file)
        except BadFile as error:
            assert error.message.isprintable()
            refused += 1
        else:
            assert stored.dialect in ("sdcli", "a1111")
            understood += 1
    assert refused > 100 and understood > 50


BOMB = zlib.compress(bytes(100_000_000), 9)


@pytest.mark.parametrize(
    "data",
    [
        png(header(12_000, 12_000), (b"IDAT", b""), (b"IEND", b"")),
        png(header(20_000, 20_000), (b"IDAT", b""), (b"IEND", b"")),
        png(header(2**31 - 1, 2**31 - 1), (b"IEND", b"")),
        png(header(8, 8), (b"zTXt", b"parameters\0\0" + BOMB), (b"IDAT", b""), (b"IEND", b"")),
        png(header(8, 8), (b"iTXt", b"sdcli\0\1\0\0\0" + BOMB), (b"IDAT", b""), (b"IEND", b"")),
        png(header(8, 8), *[(b"tEXt", b"k%d\0" % n + b"x" * 900_000) for n in range(40)], (b"IEND", b"")),
        b"", b"GIF89a" + bytes(100), b"8BPS" + bytes(100), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<html>", bytes(1000),
    ],
)  # fmt: skip
def test_bombs_and_other_formats_are_bad_files(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(data)
    with pytest.raises(BadFile):
        read(file)


def test_a_file_beyond_64_mib_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    with open(file, "wb") as sparse:
        sparse.truncate((64 << 20) + 1)
    with pytest.raises(BadFile, match="64 MiB"):
        read(file)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.png", "\0"):
        with pytest.raises(Usage):
            read(path)


def test_text_after_the_pixels_is_read(tmp_path: Path) -> None:
    data = encoding.encode(pixels(42), SIDE, SIDE, "png", record(), "none").data
    text = b"parameters\0x\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512"
    end = data.rindex(b"IEND") - 4
    file = tmp_path / "x.png"
    file.write_bytes(data[:end] + png((b"tEXt", text))[8:] + data[end:])
    assert read(file).values["seeds"] == (1,)


def test_the_comment_wins_over_the_png_chunk_and_either_byte_order_is_read(tmp_path: Path) -> None:
    from PIL import Image

    tail = "\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512"
    for encoded in ("utf-16-be", "utf-16-le", "utf-16"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + f"from the comment é{tail}".encode(encoded)
        Image.new("RGB", (8, 8)).save(tmp_path / "x.webp", exif=exif)
        assert read(tmp_path / "x.webp").values["prompts"] == ("from the comment é",)


def test_a_hostile_chunk_yields_values_only(tmp_path: Path) -> None:
    of = record(model=replace(MODEL, name="../../evil.safetensors"))
    stored = read(written(tmp_path, "png", of))
    assert "model" not in stored.values
    assert set(stored.values) <= {
        "prompts", "negative_prompt", "seeds", "steps", "guidance", "width", "height", "sampler", "clip_skip",
        "emphasis", "rng", "guess_mode",
    }  # fmt: skip


def test_every_error_of_reading_is_typed_and_safe_to_show(tmp_path: Path) -> None:
    file = tmp_path / "\x1b[31mred.png"
    file.write_bytes(b"junk")
    with pytest.raises(SdcliError) as refused:
        read(file)
    assert "\x1b" not in refused.value.message and refused.value.hint
