"""Files from outside: regular, of limited size, and JSON that means one thing."""

import io
import os
import stat
from pathlib import Path

import pytest

from sdcli import reading
from sdcli.errors import BadFile


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert reading.whole(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="larger than 99 B"):
        reading.whole(path, 99)


def test_a_file_that_tells_no_size_is_bounded_all_the_same() -> None:
    with pytest.raises(OSError, match="larger than 1 MiB"):
        reading.bounded(io.BytesIO(bytes((1 << 20) + 1)), 1 << 20)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="a pipe or a device"):
            reading.opened(tmp_path / name)


def test_a_device_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        reading.opened(tmp_path)
    if os.path.exists("/dev/zero") and stat.S_ISCHR(os.stat("/dev/zero").st_mode):
        with pytest.raises(OSError, match="a pipe or a device"):
            reading.whole("/dev/zero", 10)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ('{"a": NaN}', "is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        ('{"a": 1, "a": 2}', 'names "a" twice'),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "is nested more than 64 deep"),
        ("[]", "is not a JSON object"),
    ],
)
def test_json_that_two_readers_could_take_for_two_things_is_refused(text: str | bytes, fault: str) -> None:
    with pytest.raises(reading.NotJson, match=fault):
        reading.parse_object(text)


def test_only_what_people_type_may_name_a_key_twice() -> None:
    assert reading.read('{"a": 1, "a": 2}', duplicates=True) == {"a": 2}
    with pytest.raises(BadFile, match=r'^there:3 names "a" twice$') as caught:
        reading.read('{"a": 1, "a": 2}', "there:3", hint="sdcli help formats")
    assert caught.value.hint == "sdcli help formats"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for content, reason in ((None, "No such file"), (b" " * 11, "larger than 10 B"), (b"[]", "is not a JSON object")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadFile, match=rf"result\.json .*{reason}"):
            reading.read(path, most=10)
    path.write_bytes(b'{"a": 1}')
    assert reading.read(path, most=10) == {"a": 1}


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"[" * 100_000, b'{"a": "' + b"x" * 200_000 + b'"}'])
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "memory.json").write_bytes(content)
    assert reading.recall(tmp_path / "memory.json", 200_000) == {}
