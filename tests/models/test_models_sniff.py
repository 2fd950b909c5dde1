"""Files that are not safetensors are named by their first bytes, and nothing heavy happens on the way."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from sdcli.errors import BadFile, SdcliError, Unsafe
from sdcli.models import headers
from sdcli.models.headers import read_header


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_real_pickles_are_refused_unread(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weights": list(range(1000))}, protocol=protocol))
    with pytest.raises(Unsafe, match="is a pickle; loading one can run code"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (zipped("archive/data.pkl"), Unsafe, "is a pickle"),
        (zipped("model.txt"), Unsafe, "is a zip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), BadFile, "7z archive"),
        (b"\x1f\x8b\x08" + bytes(40), BadFile, "gzip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), BadFile, "HDF5"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), BadFile, "PNG image"),
        (b"\xef\xbb\xbf <html lang=en>", BadFile, "web page"),
        (b'<?xml version="1.0"?><Error/>', BadFile, "web page"),
        (b'{"error": "Access to model x is restricted"}', BadFile, "but a text"),
        (b"Entry not found", BadFile, 'but a text: "Entry not found"'),
        (b"\x1b[31mred", BadFile, "not a safetensors file"),
        (b"{", BadFile, "not a safetensors file"),
    ],
)
def test_what_the_file_is_instead_is_named(tmp_path: Path, content: bytes, error: type[SdcliError], words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_header(path)
    assert words in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".CKPT"])
def test_a_name_of_pickles_is_refused_whatever_is_inside(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(bytes(100))
    with pytest.raises(Unsafe, match="named like a pickle"):
        read_header(path)


def test_a_header_as_long_as_a_pickle_s_first_bytes_is_a_header(tmp_path: Path) -> None:
    table = json.dumps({"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).ljust(0x280)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x02" + bytes(6) + table.encode())
    assert list(read_header(path).tensors) == ["x"]


def test_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    paths = [tmp_path]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        paths.append(tmp_path / "pipe")
    for path in paths:
        with pytest.raises(BadFile, match=r"cannot be read: it is a (folder|pipe)"):
            read_header(path)


@pytest.mark.parametrize("filler", [b"[],", b"{},", b'"",', b'"a":"",', b"[[[[],"])
def test_a_header_full_of_small_things_is_refused_before_they_are_made(tmp_path: Path, filler: bytes) -> None:
    text = b'{"x":[' + filler * ((30 << 20) // len(filler)) + b"0]}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match="lists more than any model has"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_as_many_tensors_as_any_model_has_are_read(tmp_path: Path) -> None:
    table = {
        f"model.diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn2.to_k.weight": {
            "dtype": "F16", "shape": [0, 768], "data_offsets": [0, 0]
        } for n in range(40_000)
    }  # fmt: skip
    text = json.dumps(table).encode()
    assert len(text) > headers._LIKELY_SMALL
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert len(read_header(path).tensors) == 40_000


def test_seven_gigabytes_cost_only_their_header(tmp_path: Path) -> None:
    size = 7 * 10**9
    text = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    before = bytes_read()
    assert read_header(path).tensors["a"].size == size
    assert bytes_read() - before < 100_000


def bytes_read() -> int:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("this system does not count what a process reads")
    return int(counters.read_text().split()[1])
