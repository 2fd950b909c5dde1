"""What is in a folder, from headers alone, read once; and files read from end to end."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import model_files as files
import pytest

from sdcli import data
from sdcli.models import check, expected, folder, headers, listing
from sdcli.models.listing import Entry

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": [4, 768],
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": [640, 4]}  # fmt: skip


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Every header that is read, wherever it is read from."""
    seen: list[Path] = []
    real = headers.read_header

    def counted(path: Path) -> headers.Header:
        seen.append(path)
        return real(path)

    for module in ("listing", "folder", "checkpoint"):
        monkeypatch.setattr(f"sdcli.models.{module}.read_header", counted)
    yield seen


def by_name(entries: list[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def some_models(base: Path) -> Path:
    files.file(base / "dream.safetensors", files.checkpoint("sd15"))
    files.file(base / "xl" / "big.safetensors", files.checkpoint("sdxl"), metadata={"modelspec.prediction_type": "v"})
    files.file(base / "lora" / "style.safetensors", LORA, metadata={"modelspec.trigger_phrase": "in my style, ink"})
    files.folder(base / "whole", "sd15", dtype="F16")
    (base / "old.ckpt").write_bytes(b"\x80\x02pickled")
    (base / "cut.safetensors").write_bytes(b"\x99\0\0\0\0\0\0\0{}      ")
    (base / "notes.txt").write_text("no model")
    return base


def test_every_kind_of_file_is_listed_for_what_it_is(tmp_path: Path) -> None:
    entries = by_name(listing.listed(folders=[some_models(tmp_path)]))
    assert set(entries) == {"dream", "big", "style", "whole", "old.ckpt", "cut"}
    assert (entries["dream"].kind, entries["dream"].dtype, entries["dream"].drawn) == ("sd15", "fp16", True)
    assert (entries["big"].kind, entries["big"].prediction) == ("sdxl", "v_prediction")
    assert (entries["style"].kind, entries["style"].family, entries["style"].drawn) == ("lora", "sd15", False)
    assert entries["style"].words == ("in my style", "ink")
    assert (entries["whole"].kind, entries["whole"].layout, entries["whole"].dtype) == ("sd15", "diffusers", "fp16")
    assert entries["dream"].bytes == (tmp_path / "dream.safetensors").stat().st_size


def test_a_pickle_is_refused_by_its_name_and_never_opened(tmp_path: Path, reads: list[Path]) -> None:
    for name in ("a.ckpt", "b.pt", "c.BIN", "d.pth"):
        (tmp_path / name).write_bytes(b"")
    entries = listing.listed(folders=[tmp_path])
    assert {entry.kind for entry in entries} == {"pickle"} and all("refused" in (e.error or "") for e in entries)
    assert reads == []


def test_a_damaged_file_says_why_and_hides_no_other(tmp_path: Path) -> None:
    entries = by_name(listing.listed(folders=[some_models(tmp_path)]))
    assert entries["cut"].error is not None and "cut off" in entries["cut"].error
    assert entries["dream"].error is None


def test_a_thousand_files_are_listed_again_without_opening_one(tmp_path: Path, reads: list[Path]) -> None:
    first = files.file(tmp_path / "many" / "0.safetensors", LORA)
    for number in range(1, 1000):
        os.link(first, first.with_name(f"{number}.safetensors"))
    file = tmp_path / "listing.json"

    def listed() -> list[Entry]:
        cache = listing.recall(file)
        entries = listing.listed(folders=[tmp_path / "many"], cache=cache)
        listing.save(cache)
        return entries

    before = listed()
    assert len(before) == len(reads) == 1000
    reads.clear()
    assert listed() == before
    assert reads == []


def test_only_what_changed_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    some_models(tmp_path)
    cache = listing.recall(tmp_path / "listing.json")
    listing.listed(folders=[tmp_path], cache=cache)
    listing.save(cache)
    files.file(tmp_path / "dream.safetensors", files.checkpoint("sd15"), dtype="F32")
    reads.clear()
    again = by_name(listing.listed(folders=[tmp_path], cache=listing.recall(tmp_path / "listing.json")))
    assert reads == [tmp_path / "dream.safetensors"] and again["dream"].dtype == "fp32"


def test_a_changed_config_makes_a_folder_new(tmp_path: Path, reads: list[Path]) -> None:
    base = files.folder(tmp_path / "whole", "sd15")
    cache = listing.recall(tmp_path / "m.json")
    listing.listed(folders=[tmp_path], cache=cache)
    listing.save(cache)
    scheduler = base / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    (entry,) = listing.listed(folders=[tmp_path], cache=listing.recall(tmp_path / "m.json"))
    assert entry.prediction == "v_prediction"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema": "other"}', b"\xff", b'{"schema": "sdcli.listing/1"}']
)
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.json").write_bytes(content)
    files.file(tmp_path / "style.safetensors", LORA)
    cache = listing.recall(tmp_path / "m.json")
    assert [entry.kind for entry in listing.listed(folders=[tmp_path], cache=cache)] == ["lora"]
    listing.save(cache)
    assert listing.recall(tmp_path / "m.json").stored


def test_nonsense_in_the_cache_is_not_believed(tmp_path: Path) -> None:
    path = files.file(tmp_path / "style.safetensors", LORA)
    about = path.stat()
    for entry in (None, {}, {"name": 5}, [], {"name": "x", "path": "y", "source": "z", "bytes": "many"}):
        cache = listing.Cache(None, {str(path): {"stamp": [about.st_size, about.st_mtime_ns], "entry": entry}})
        assert [listed.kind for listed in listing.listed(folders=[tmp_path], cache=cache)] == ["lora"]


def test_a_cache_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    cache = listing.recall(tmp_path / "file" / "m.json")
    listing.listed(folders=[some_models(tmp_path / "models")], cache=cache)
    listing.save(cache)


def test_the_cache_is_listed_by_alias_and_commit(tmp_path: Path) -> None:
    files.snapshot(tmp_path, "stable-diffusion-v1-5/stable-diffusion-v1-5", COMMIT)
    files.snapshot(tmp_path, "me/mine", COMMIT)
    entries = by_name(listing.listed(hub=tmp_path))
    assert set(entries) == {"sd15", "me/mine"}
    assert (entries["sd15"].source, entries["sd15"].revision, entries["sd15"].drawn) == ("cache", COMMIT, True)


def test_language_models_in_the_cache_are_no_business_of_ours(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--words" / "snapshots" / COMMIT
    files.file(snapshot / "model.safetensors", {"lm_head.weight": [10, 10]})
    files.file(tmp_path / "models--me--style" / "snapshots" / COMMIT / "style.safetensors", LORA)
    assert [entry.name for entry in listing.listed(hub=tmp_path)] == ["me/style/style.safetensors"]


def test_a_missing_folder_lists_nothing(tmp_path: Path) -> None:
    assert listing.listed(folders=[tmp_path / "none"], hub=tmp_path / "none") == []


# --- words a LoRA was trained on


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "sks dog"}, ("sks dog",)),
        ({"ss_tag_frequency": json.dumps({"10_x": {"ink": 9, "cat": 3}, "5_y": {"cat": 30}})}, ("cat", "ink")),
        ({"ss_tag_frequency": json.dumps({"a": {str(n): n for n in range(50)}})}, ("49", "48", "47", "46", "45")),
        ({"ss_tag_frequency": "no json"}, ()),
        ({"ss_tag_frequency": '{"a": {"b": "many", "c": true}, "d": 5}'}, ()),
        ({"ss_tag_frequency": "[" * 5000}, ()),
        ({}, ()),
    ],
)
def test_trigger_words_come_from_the_files_own_notes(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert listing.trigger_words(metadata) == words


# --- a whole file read


def with_values(path: Path, dtype: str, raw: bytes) -> Path:
    width = files.WIDTHS.get(dtype, 1)
    table = {"a": {"dtype": dtype, "shape": [len(raw) // width], "data_offsets": [0, len(raw)]}}
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw)
    return path


def done(generator: Any) -> check.Check:
    while True:
        try:
            next(generator)
        except StopIteration as end:
            result: check.Check = end.value
            return result


@pytest.mark.parametrize(
    ("dtype", "raw", "count"),
    [
        ("F32", struct.pack("<4f", 1.0, float("nan"), float("-inf"), 3e38), 2),
        ("F16", struct.pack("<4e", 65504.0, float("inf"), -0.0, float("nan")), 2),
        ("BF16", struct.pack("<4H", 0x7F80, 0xFFC0, 0x7F7F, 0x0001), 2),
        ("F64", struct.pack("<2d", float("inf"), 1e308), 1),
        ("F8_E4M3", bytes([0x7F, 0xFF, 0x7E, 0x00]), 2),
        ("F8_E5M2", bytes([0x7C, 0xFD, 0x7B, 0x00]), 2),
        ("I64", b"\xff" * 16, 0),
        ("U8", b"\x7c\x7f", 0),
    ],
)
def test_numbers_that_are_none_are_counted_in_every_format(tmp_path: Path, dtype: str, raw: bytes, count: int) -> None:
    result = done(check.check("x", [with_values(tmp_path / "x.safetensors", dtype, raw)]))
    assert sum(fault.count for fault in result.files[0].not_finite) == count
    assert result.sound == (count == 0)


def test_the_hash_is_of_the_whole_file_however_it_is_cut_into_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PIECE", 64)
    path = files.file(tmp_path / "x.safetensors", {"a": [33], "b": [0], "c": [7, 9]})
    result = done(check.check("x", [path]))
    assert result.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and result.sound


def test_a_damaged_file_is_hashed_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not at all")
    result = done(check.check("x", [path]))
    assert not result.sound and result.files[0].error
    assert result.files[0].sha256 == hashlib.sha256(b"not at all").hexdigest()


def test_in_the_cache_a_file_is_compared_with_the_name_of_its_blob(tmp_path: Path) -> None:
    good = files.file(tmp_path / "made", {"a": [5]})
    name = hashlib.sha256(good.read_bytes()).hexdigest()
    good.rename(tmp_path / name)
    pointer = tmp_path / "model.safetensors"
    pointer.symlink_to(name)
    assert done(check.check("x", [pointer])).sound
    raw = bytearray((tmp_path / name).read_bytes())
    raw[-1] ^= 1
    (tmp_path / name).write_bytes(raw)
    result = done(check.check("x", [pointer]))
    assert not result.sound and result.files[0].expected == name != result.files[0].sha256


def test_a_file_of_a_quarter_gigabyte_is_read_in_small_pieces(tmp_path: Path) -> None:
    import tracemalloc

    path = files.file(tmp_path / "x.safetensors", {"a": [1 << 27]}, dtype="F16")
    done(check.check("x", [with_values(tmp_path / "y.safetensors", "F16", b"")]))  # what is imported is no cache of it
    tracemalloc.start()
    try:
        result = done(check.check("x", [path]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.sound and result.files[0].bytes > 1 << 28
    assert peak < 6 * check.PIECE


# --- what the configs describe


def tiny_configs(family: str) -> dict[str, dict[str, Any]]:
    from scripts import make_checkpoint

    return {name: made for name, made in make_checkpoint.configs(family, tiny=True).items() if name != "scheduler"}


def stored(family: str, layout: str) -> dict[str, dict[str, headers.Tensor]]:
    """Names and shapes of every component as files hold them, from the modules of diffusers and transformers."""
    pytest.importorskip("torch")
    from scripts import make_checkpoint

    tensors: dict[str, dict[str, headers.Tensor]] = {}
    for name, config in tiny_configs(family).items():
        planned = make_checkpoint.planned(name, config, 0)
        named = planned if layout == "diffusers" else dict(make_checkpoint.original(family, name, config, planned))
        tensors[name] = {key: headers.Tensor("F32", tuple(made.shape), 0, 0) for key, made in named.items()}
    return tensors


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_tensor_of_every_component_is_expected_in_both_layouts(family: str, layout: str) -> None:
    """Nothing of a whole model is missed, and each tensor that is taken away or misshapen is named."""
    by_component = stored(family, layout)
    everything = {key: tensor for part in by_component.values() for key, tensor in part.items()}
    for name, config in tiny_configs(family).items():
        base = everything if layout == "original" else by_component[name]  # a single checkpoint holds the others too
        assert expected.lacking(name, config, base) == ([], []), name
        optional = ("position_ids", "logit_scale")
        for key in list(by_component[name])[::7]:
            if key.endswith(optional):
                continue
            missing, other = expected.lacking(name, config, {k: t for k, t in base.items() if k != key})
            assert missing and not other, key
            assert len(missing) == (3 if ".in_proj_" in key else 1)
            if key.endswith("weight") and len(base[key].shape) > 1:
                odd = headers.Tensor("F32", (base[key].shape[0] + 3, *base[key].shape[1:]), 0, 0)
                missing, other = expected.lacking(name, config, {**base, key: odd})
                assert other and not missing, key


def test_a_whole_checkpoint_of_full_size_lacks_nothing(tmp_path: Path) -> None:
    """Names and shapes of SDXL's parts as they are described, under diffusers' names."""
    for family, part in (("sd15", "vae"), ("sdxl", "unet"), ("sdxl", "text_encoder_2")):
        config = data.component_config(family, part)
        named = {key: headers.Tensor("F16", shape, 0, 0) for key, shape in expected.described(part, config).items()}
        assert expected.lacking(part, config, named) == ([], [])


def test_missing_tensors_are_named_whole_or_in_shards(tmp_path: Path) -> None:
    base = files.folder(tmp_path / "whole", "sd15")
    for part in files.parts("sd15"):
        described = expected.described(part, data.component_config("sd15", part))
        shapes = {key: list(shape) or [1] for key, shape in described.items()}
        rest = files.file(base / part / f"{files.stem(part)}.safetensors", shapes, dtype="F8_E4M3")
        if part == "unet":
            del shapes["conv_out.weight"]
            shapes["conv_in.weight"] = [4, 320, 3, 3]
            half = len(shapes) // 2
            table = {}
            for number, names in enumerate((list(shapes)[:half], list(shapes)[half:]), 1):
                shard = f"{files.stem(part)}-0000{number}-of-00002.safetensors"
                files.file(base / part / shard, {name: shapes[name] for name in names}, dtype="F8_E4M3")
                table |= dict.fromkeys(names, shard)
            files.write_json(base / part / f"{files.stem(part)}.safetensors.index.json", {"weight_map": table})
            rest.unlink()
    model = folder.read(base, whole=False)
    assert len(model.components["unet"].files) == 2
    missing, mismatched = check._compare_with_configs(model)
    assert (missing, mismatched) == (("unet: conv_out.weight",), ("unet: conv_in.weight",))
