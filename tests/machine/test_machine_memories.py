"""Memories that may be lost but never lie: atomic, bounded, shared by several programs."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.machine import memories
from sdcli.machine.folders import state_folder
from sdcli.machine.hardware import Hardware, Probe
from sdcli.machine.memories import Store
from sdcli.sizes import GIB


def test_asking_a_memory_that_is_not_there_makes_none(tmp_path: Path) -> None:
    assert Store(tmp_path / "state" / "x.json").read() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the system's own list of users is POSIX'")
def test_a_user_without_a_home_remembers_nothing_and_fails_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def nobody(number: int) -> object:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    store = Store(state_folder({}, "linux") / "measured.json")
    assert store.read() == {}
    assert store.update("a", lambda old: 1) is False


def test_what_is_put_in_comes_out_and_the_old_value_is_offered(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "memory.json")
    assert store.update("a", lambda old: [old]) and store.update("a", lambda old: [old, 2])
    assert store.read() == {"a": [[None], 2]}
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["memory.json"], "no lock, no part file stays"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"entries": {}}', b'{"schema": "sdcli.state/2", "entries": {"a": 1}}',
        b'{"schema": "sdcli.state/1", "entries": []}', b"[" * 100_000, b"0" * 5000,
    ],
)  # fmt: skip
def test_a_damaged_or_newer_memory_is_an_empty_one_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path / "m.json", most_bytes=200_000)
    store.path.write_bytes(content)
    assert store.read() == {}
    assert store.update("b", lambda old: 2)
    assert store.read() == {"b": 2}


def test_a_memory_that_has_grown_beyond_its_bounds_is_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "m.json", most_bytes=1000)
    store.path.write_text(json.dumps({"schema": "sdcli.state/1", "entries": {"a": "x" * 2000}}))
    assert store.read() == {}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=200)), max_size=30))
def test_it_never_outgrows_its_bounds_and_keeps_the_newest(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str]]
) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "m.json", most_entries=5, most_bytes=2000)
    for key, value in entries:
        assert store.update(key, lambda old, value=value: value)
        assert store.path.stat().st_size <= 2000 and len(store.read()) <= 5
        if len(json.dumps(key)) + len(json.dumps(value)) < 1900:
            assert store.read()[key] == value


def test_an_entry_used_again_is_the_newest_and_outlives_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "m.json", most_entries=2)
    for key in ("a", "b", "a", "c"):
        store.update(key, lambda old: (old or 0) + 1)
    assert store.read() == {"a": 2, "c": 1}


def test_what_cannot_be_json_is_not_kept_and_nothing_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path / "m.json")
    store.update("a", lambda old: 1)
    assert store.update("b", lambda old: float("nan")) is False
    assert store.update("b", lambda old: object()) is False
    assert store.read() == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Store(tmp_path / "file" / "m.json").update("a", lambda old: 1) is False


def test_a_replace_that_fails_leaves_the_old_memory_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "m.json")
    store.update("a", lambda old: 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert store.update("b", lambda old: 2) is False
    assert store.read() == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_a_lock_left_behind_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "m.json")
    lock = tmp_path / "m.lock"
    lock.touch()
    os.utime(lock, (1, 1))
    assert store.update("a", lambda old: 1)
    assert not lock.exists(), "a stale one is removed"
    lock.touch()
    monkeypatch.setattr(memories._Lock, "patience", 0.0)
    assert store.update("b", lambda old: 2)
    assert store.read() == {"a": 1, "b": 2} and lock.exists(), "someone else's is left to them"


def _count(path: Path, times: int) -> None:
    for _ in range(times):
        assert Store(path).update("n", lambda old: (old or 0) + 1)


def test_two_programs_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(tmp_path / "m.json", 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert Store(tmp_path / "m.json").read() == {"n": 40}


# --- what is remembered


def _gpu(**changes: object) -> Hardware:
    values: dict[str, object] = {
        "device": "cuda:0", "name": "RTX 4060", "source": "nvml", "total": 8 * GIB, "free": 7 * GIB,
        "ram_total": 32 * GIB, "ram_free": 20 * GIB, "capability": "8.9", "threads": 6, "isa": "avx2",
    }  # fmt: skip
    return Hardware(**{**values, **changes})  # type: ignore[arg-type]


def test_a_machine_is_the_same_whatever_is_free_and_another_with_other_parts() -> None:
    versions = {"torch": "2.13.0", "diffusers": "0.42.1"}
    same = _gpu().fingerprint(versions)
    busy = _gpu(free=GIB, ram_free=GIB, device="cuda:1")
    assert busy.fingerprint(dict(reversed(versions.items()))) == same
    others = [_gpu(name="RTX 3060"), _gpu(total=6 * GIB), _gpu(threads=4), _gpu(isa="avx512"), _gpu(ram_total=GIB)]
    assert all(other.fingerprint(versions) != same for other in others)
    assert _gpu().fingerprint({**versions, "torch": "2.14.0"}) != same


def test_runs_are_remembered_by_machine_and_way_and_merged_by_the_caller() -> None:
    assert memories.remember_run("here", "sd15 512x512", lambda old: {"runs": 1})
    assert memories.remember_run("here", "sd15 512x512", lambda old: {"runs": old["runs"] + 1})
    assert memories.remember_run("there", "sd15 512x512", lambda old: {"runs": 9})
    assert memories.remembered("here") == {"sd15 512x512": {"runs": 2}}
    assert memories.remembered("her") == {} and memories.remembered("there")["sd15 512x512"]["runs"] == 9


def test_the_best_rate_stays_the_best() -> None:
    assert memories.best_rate("here", "bf16") is None
    assert all(memories.remember_rate("here", "bf16", rate) for rate in (1e12, 4e12, 2e12))
    assert memories.best_rate("here", "bf16") == 4e12
    assert memories.best_rate("here", "fp32") is None
    assert not memories.remember_rate("here", "bf16", float("inf"))
    assert not memories.remember_rate("here", "bf16", -1.0)
    assert memories.best_rate("here", "bf16") == 4e12


def test_many_runs_do_not_push_a_probe_out() -> None:
    memories.remember_probe(("Ryzen", "avx2", "2.13.0"), Probe(dtypes={"bf16": "probed"}))
    small = Store(memories.store().path, most_entries=3)
    for number in range(5):
        memories.remember_run("here", str(number), lambda old: 1, where=small)
    assert len(memories.remembered("here")) == 3
    assert ("Ryzen", "avx2", "2.13.0") in memories.probes()


def test_a_probe_is_remembered_for_this_cpu_isa_and_torch_only() -> None:
    probe = Probe(dtypes={"bf16": "probed"}, ratio={"bf16": 0.5}, seconds=0.8)
    slow = Probe(dtypes={"bf16": "unavailable"}, ratio={"bf16": 3.0}, seconds=0.8)
    assert memories.probes() == {}
    assert memories.remember_probe(("Ryzen", "avx512_bf16", "2.13.0"), probe)
    assert memories.remember_probe(("Ryzen", "avx512_bf16", "2.14.0"), slow)
    assert memories.probes() == {
        ("Ryzen", "avx512_bf16", "2.13.0"): probe,
        ("Ryzen", "avx512_bf16", "2.14.0"): slow,
    }


@pytest.mark.parametrize("entry", [None, [], "x", {"dtypes": 3}, {"ratio": {}}])
def test_a_probe_that_was_tampered_with_is_none(entry: object) -> None:
    memories.store("probes").update("probe\na\nb\nc", lambda old: entry)
    assert memories.probes() == {}


@pytest.mark.parametrize("key", ["", "probe", "probe\na\nb", "probe\na\nb\nc\nd", "run\na\nb\nc"])
def test_what_stands_under_another_key_is_no_probe(key: str) -> None:
    memories.store("probes").update(key, lambda old: {"dtypes": {"bf16": "probed"}})
    assert memories.probes() == {}


def test_only_sound_values_are_taken_from_a_remembered_probe() -> None:
    entry = {"dtypes": {"bf16": "probed", "fp16": "sure"}, "ratio": {"bf16": -1, "fp32": 1}, "seconds": "x"}
    memories.store("probes").update("probe\na\nb\nc", lambda old: entry)
    assert memories.probes() == {("a", "b", "c"): Probe(dtypes={"bf16": "probed"}, ratio={"fp32": 1.0}, seconds=0.0)}
