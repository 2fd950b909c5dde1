"""A .safetensors header is believed only after every claim in it was checked."""

import io
import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sdcli.errors import BadFile, ModelMissing, SdcliError, Unsafe
from sdcli.models.headers import Header, read_from, read_header


def whole(table: dict[str, Any], data: bytes, path: Path) -> Path:
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def read_bytes(content: bytes) -> Header:
    return read_from(io.BytesIO(content), len(content), Path("m.safetensors"))


def good(path: Path) -> Path:
    table = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b.bias": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
    }
    return whole(table, bytes(16), path)


def test_a_good_header_gives_names_shapes_sizes_and_metadata(tmp_path: Path) -> None:
    header = read_header(good(tmp_path / "m.safetensors"))
    assert header.tensors["a.weight"].shape == (2, 3)
    assert header.tensors["b.bias"].size == 4
    assert header.metadata == {"format": "pt"}
    assert header.data_start + 16 == header.size


def test_it_agrees_with_the_format_s_own_library(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    import numpy

    path = tmp_path / "m.safetensors"
    safetensors.save_file({"x": numpy.zeros((4, 5), numpy.float16), "y": numpy.ones(3, numpy.int64)}, path)
    tensors = read_header(path).tensors
    assert (tensors["x"].dtype, tensors["x"].shape, tensors["y"].size) == ("F16", (4, 5), 24)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", BadFile, "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", BadFile, "git-lfs pointer"),
        (b"<!DOCTYPE html><html>log in</html>", BadFile, "web page"),
        (b"  \n<html>", BadFile, "web page"),
        (b"PK\x03\x04" + bytes(40), Unsafe, "pickle"),
        (b"\x80\x02}q\x00." + bytes(40), Unsafe, "pickle"),
        (b"\x80\x04\x95" + bytes(40), Unsafe, "pickle"),
        (b"GGUF" + bytes(40), BadFile, "GGUF"),
        (b"hello", BadFile, "not a safetensors file"),
        (bytes(100), BadFile, "not a safetensors file"),
        ((2**60).to_bytes(8, "little") + b"{}", BadFile, "not a safetensors file"),
        ((90).to_bytes(8, "little") + b"{}", BadFile, "cut off"),
    ],
)
def test_a_foreign_file_is_named_by_its_content_whatever_its_name(
    tmp_path: Path, content: bytes, error: type[SdcliError], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_header(path)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_pickle_by_name_is_refused_even_with_other_content(tmp_path: Path) -> None:
    with pytest.raises(Unsafe):
        read_header(good(tmp_path / "model.ckpt"))


def test_an_absent_file_is_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        read_header(tmp_path / "none.safetensors")


F16 = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}', "not a table"),
        ("[1]", "not a safetensors file"),
        ('{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}, "a": 1}', "twice"),
        (json.dumps({"a": {**F16, "dtype": "Q4"}}), "dtype"),
        (json.dumps({"a": {**F16, "dtype": ["F16"]}}), "dtype"),
        (json.dumps({"a": {**F16, "shape": [-2]}}), "shape"),
        (json.dumps({"a": {**F16, "shape": [2**50, 2**50]}}), "shape"),
        (json.dumps({"a": {**F16, "shape": [True]}}), "shape"),
        (json.dumps({"a": {**F16, "shape": [3]}}), "needs"),
        (json.dumps({"a": {**F16, "data_offsets": [4, 0]}}), "invalid data_offsets"),
        (json.dumps({"a": {**F16, "data_offsets": [2, 6]}}), "gap"),
        (json.dumps({"a": F16, "b": F16}), "overlaps"),
        (json.dumps({"\x1b[31m": F16}), "not a valid tensor name"),
        (json.dumps({"x" * 600: F16}), "not a valid tensor name"),
        (json.dumps({"__metadata__": {"a": 1}, "a": F16}), "metadata"),
        ("{" + '"a":' * 1, "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ("{" + "[" * 5000, "not JSON"),
    ],
)
def test_a_damaged_header_is_refused_with_its_fault(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(4))
    with pytest.raises(BadFile) as caught:
        read_header(path)
    assert words in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(("change", "words"), [(-3, "cut off"), (5, "after its last tensor")])
def test_a_file_of_another_length_than_its_header_says_is_refused(tmp_path: Path, change: int, words: str) -> None:
    path = good(tmp_path / "m.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(BadFile) as caught:
        read_header(path)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": None}, 'damaged: tensor "x" has no dtype'),
        ({"dtype": "F4"}, 'not readable: tensor "x" has the dtype F4, which sdcli does not support'),
        ({"shape": [-1]}, 'damaged: tensor "x" has an invalid shape'),
        ({"data_offsets": [4, 0]}, 'damaged: tensor "x" has invalid data_offsets'),
        ({}, "cut off: it has 3,999,997 of 4,000,000 bytes of data"),
    ],
)
def test_a_damaged_header_is_described_in_whole_sentences(tmp_path: Path, change: dict[str, object], said: str) -> None:
    tensor = {"dtype": "F32", "shape": [1_000_000], "data_offsets": [0, 4_000_000], **change}
    header = json.dumps({"x": tensor}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3_999_997))
    with pytest.raises(BadFile) as caught:
        read_header(path)
    assert caught.value.message == f"{path} is {said}"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_a_link_points_to_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:x:0:0:root:/root:/bin/bash")
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(BadFile) as caught:
        read_header(tmp_path / "m.safetensors")
    assert "root:x" not in caught.value.message


def test_two_thousand_mutated_headers_are_read_or_refused_in_bounded_memory(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = good(tmp_path / "m.safetensors")
    content = path.read_bytes()
    tracemalloc.start()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            _mutate(changed, chance)
        try:
            read_bytes(bytes(changed))
            outcomes["read"] += 1
        except SdcliError as error:
            assert error.code in (6, 9)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def _mutate(content: bytearray, chance: random.Random) -> None:
    where = chance.randrange(len(content)) if content else 0
    match chance.randrange(6):
        case 0 if content:
            content[where] ^= 1 << chance.randrange(8)
        case 1:
            del content[where : where + chance.randint(1, 20)]
        case 2:
            content[where:where] = chance.randbytes(chance.randint(1, 8))
        case 3:
            content[where:where] = content[max(0, where - 30) : where]
        case 4:
            content[:8] = chance.choice([0, 1, 2**32, 2**63, len(content), 20]).to_bytes(8, "little")
        case _:
            content[where : where + 1] = str(chance.choice([-1, 2**64, 10**30])).encode()


PIECES: dict[str, list[Any]] = {
    "dtype": ["F16", "F32", "I64", "BOOL", "F8_E4M3", "f16", "", "Q4", None, 7, ["F16"], {}],
    "shape": [[], [0], [1], [2, 3], [3, 2, 1], [-1], [2**31, 2**31, 2**31], [1.0], ["2"], [True], None, {}, 4, [[2]]],
    "data_offsets": [[0, 4], [0, 12], [4, 16], [12, 16], [0, 0], [16, 16], [4, 0], [0], [0, 2**63], [-4, 0], None, "x"],
}
ODD_NAMES = ["a", "b", "a.weight", "", "\x00", "\ud800", "猫.重み", "x" * 513, "__metadata__ ", "..", "\u202e"]


def test_whatever_is_accepted_the_format_s_own_library_accepts_too() -> None:
    deserialize = pytest.importorskip("safetensors").deserialize
    chance = random.Random(11)
    accepted = 0
    for _ in range(3000):
        table: dict[str, Any] = {}
        position = 0
        for name in chance.sample(ODD_NAMES, chance.randint(0, 3)):
            dtype, width = chance.choice([("F16", 2), ("F32", 4), ("U8", 1), ("I64", 8)])
            shape = [chance.randint(0, 3) for _ in range(chance.randint(0, 3))]
            size = width
            for side in shape:
                size *= side
            table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
            position += size
            if chance.random() < 0.2:
                key = chance.choice(list(PIECES))
                table[name][key] = chance.choice(PIECES[key])
            if chance.random() < 0.03:
                table[name].pop(chance.choice(list(PIECES)))
        if chance.random() < 0.1:
            table["__metadata__"] = chance.choice([{}, {"a": "b"}, {"a": 1}, [], None, "x", {"a": None}])
        text = json.dumps(table).encode()
        missing = chance.choice([0] * 8 + [-1, 1])
        content = len(text).to_bytes(8, "little") + text + bytes(max(0, position + missing))
        try:
            names = set(read_bytes(content).tensors)
        except SdcliError as error:
            assert error.code == 9
            continue
        accepted += 1
        assert {name for name, _ in deserialize(content)} == names
    assert 300 < accepted < 2700
