"""Files written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcli.errors import CannotWrite
from sdcli.files import REAL, Files, replace_whole, save


class FullDisk(Files):
    def write(self, file: int, data: bytes | memoryview) -> int:
        if super().write(file, data[:1]):
            raise OSError(28, "no space")
        return 0


@pytest.mark.parametrize("sync", [True, False])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / ("x" * 250)  # as long as file systems allow
    replace_whole(REAL, path, [b"old"], sync=sync)
    with pytest.raises(OSError):
        replace_whole(FullDisk(), path, [b"new"], sync=sync)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    replace_whole(REAL, path, [b"new", b"er"], sync=sync)
    assert path.read_bytes() == b"newer"


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/")):
        with pytest.raises(CannotWrite, match="it is a folder") as caught:
            save(path, "text", hint="--html ~/bench.html")
        assert caught.value.hint == "--html ~/bench.html"
    assert not list(tmp_path.iterdir())
