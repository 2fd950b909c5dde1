"""A hash is worked out once for a file, and again when the file has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcli.errors import BadFile, ModelMissing
from sdcli.machine.memories import Store
from sdcli.models.cache import sha256_of


class Counted:
    """A store that counts how often it was written."""

    def __init__(self, path: Path) -> None:
        self.store, self.writes = Store(path), 0

    def read(self) -> dict[str, Any]:
        return self.store.read()

    def update(self, key: str, change: Callable[[Any], Any]) -> bool:
        self.writes += 1
        return self.store.update(key, change)


def test_the_hash_is_the_file_s(tmp_path: Path) -> None:
    content = os.urandom(9 << 20)  # more than is read at once
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_it_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    store, file = Counted(tmp_path / "hashes.json"), tmp_path / "x"
    file.write_bytes(b"one")
    first = sha256_of(file, store)
    assert sha256_of(file, store) == first
    assert store.writes == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert sha256_of(file, store) == hashlib.sha256(b"two").hexdigest()
    assert store.writes == 2


@pytest.mark.parametrize(
    "entry", [None, 7, {}, {"stamp": [3, 1]}, {"stamp": [3, 1], "sha256": 7}, {"sha256": "a" * 64}]
)
def test_a_damaged_store_is_ignored(tmp_path: Path, entry: Any) -> None:
    store, file = Store(tmp_path / "hashes.json"), tmp_path / "x"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    store.update(str(file), lambda _: entry)
    assert sha256_of(file, store) == hashlib.sha256(b"one").hexdigest()


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        sha256_of(tmp_path / "absent")
    with pytest.raises(BadFile):
        sha256_of(tmp_path)
