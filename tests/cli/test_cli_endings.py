"""How a command ends: interrupted, terminated, hung up, with stdout full or closed, with the disk full; always once."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_run import ROOT, sdcli, start

from sdcli import files
from sdcli.record import report as reports

FAKE = ("--engine", "fake", "--size", "64x64", "-s", "2")
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and descriptors as POSIX has them")
SIGNALS = [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 143, "terminated")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- by a signal


def drawing(here: Path, *words: str) -> subprocess.Popen[bytes]:
    """A long run, once its first image is on the disk."""
    process = start(
        "generate", "a cat", "-n", "3000", "--seed", "1", "--engine", "fake", "--size", "256x256", *words, cwd=here,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not list((here / "sdcli-images").glob("0001-*.png")):
        assert process.poll() is None
    return process


@POSIX
@pytest.mark.parametrize(
    ("name", "code", "word", "json_wanted"),
    [
        pytest.param(
            *known,
            wanted,
            id=f"{known[0]}-{'json' * wanted}",
            marks=[pytest.mark.proof] * (number > 0 and number % 2 != wanted),
        )
        for number, known in enumerate(SIGNALS)
        for wanted in (False, True)
    ],
)
def test_a_signal_is_answered_once_and_everywhere_with_what_was_kept(
    here: Path, name: str, code: int, word: str, json_wanted: bool
) -> None:
    process = drawing(here, *(("--json",) if json_wanted else ()))
    process.send_signal(getattr(signal, name))
    out, error = (text.decode() for text in process.communicate(timeout=30))
    assert process.returncode == code and "Traceback" not in error
    (record,) = (here / "sdcli-images/runs").iterdir()
    report = json.loads((record / "report.json").read_text())
    saved = [image["seed"] for image in report["images"] if image["status"] == "saved"]
    kept = f"{len(saved)} of 3000 images in {here / 'sdcli-images'}"
    rest = f"sdcli resume {record.name}"
    assert (report["status"], report["error"]["type"]) == ("interrupted", word)
    assert (report["error"]["done"], report["error"]["hint"]) == (kept, rest)
    if json_wanted:
        assert out.count("\n") == 1 and json.loads(out)["error"] == report["error"]
        assert word not in error
    else:
        told = error.splitlines()
        assert told[-3:] == [word, f" kept: {kept}", f"  try: {rest}"] and error.count(word) == 1
    end = json.loads((record / "run.jsonl").read_text().splitlines()[-1])
    assert (end["type"], end["status"], end["exit_code"]) == ("end", "interrupted", code)
    there = sorted(path.name for path in (here / "sdcli-images").glob("*.png"))
    assert there == [image["file"] for image in report["images"] if image["status"] == "saved"]


AT_START = """
import os, signal, sys
if {early}:  # before any of sdcli but the package itself
    class Finder:
        def find_spec(self, name, *rest):
            if name == "sdcli.cli": os.kill(os.getpid(), signal.{name})
    sys.meta_path.insert(0, Finder())
else:
    import sdcli.cli.pull
    def told(*_, **__): os.kill(os.getpid(), signal.{name})
    sdcli.cli.pull.plan_for = told
sys.argv = ["sdcli", "generate", "a cat", "--engine", "fake", *sys.argv[1:]]
from sdcli.__main__ import run
run()
"""


@POSIX
@pytest.mark.parametrize("early", [True, False], ids=["importing", "planning"])
@pytest.mark.parametrize(("name", "code", "word"), SIGNALS)
def test_from_the_first_import_on_a_signal_is_a_word_and_a_code(
    here: Path, name: str, code: int, word: str, early: bool
) -> None:
    script = AT_START.format(early=early, name=name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for more in ((), ("--json",)):
        done = subprocess.run([sys.executable, "-c", script, *more], cwd=here, env=environment, capture_output=True)
        assert done.returncode == code
        if more:
            assert json.loads(done.stdout)["error"]["type"] == word and done.stderr == b""
        else:
            assert (done.stdout, done.stderr.decode().strip()) == (b"", word)


SWALLOWED = """
import os, signal, sys
from sdcli.draw import fake
from sdcli.cli.main import run
real = fake.Run._encode
class Gone:
    def __del__(self): os.kill(os.getpid(), signal.{name}); 1 + 1
def encode(self, *given):
    Gone()
    try:
        os.kill(os.getpid(), signal.{name}) if {caught} else None
        1 + 1
    except Exception: pass
    yield from real(self, *given)
fake.Run._encode = encode
run()
"""


@POSIX
@pytest.mark.parametrize(("name", "code", "word"), SIGNALS[:2])
def test_a_signal_that_falls_into_a_destructor_is_not_lost(here: Path, name: str, code: int, word: str) -> None:
    """Python can only complain there; the run would go on to its end."""
    script = SWALLOWED.format(name=name, caught=False)
    words = ("generate", "a cat", "-n", "4", *FAKE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=here, env=environment, capture_output=True)
    assert done.returncode == code and word in done.stderr.decode()
    assert "Exception ignored" not in done.stderr.decode()
    assert list((here / "sdcli-images").glob("*.png")) == []


STRUCK = """
import atexit, os, signal
from sdcli import terminal
from sdcli.cli import answer, generate
from sdcli.record import report
def strike(): os.kill(os.getpid(), signal.SIGINT); 1 + 1
def after(real):
    def both(*given, **named):
        found = real(*given, **named)
        strike()
        return found
    return both
def before(real):
    def both(*given, **named):
        strike()
        return real(*given, **named)
    return both
{moment}
from sdcli.__main__ import run
run()
"""
MOMENTS = {
    "recording": "report.write = before(report.write)",
    "answering": "generate.put = answer.put = after(terminal.put)",
    "leaving": "atexit.register(strike)",
}


@POSIX
@pytest.mark.parametrize(("moment", "command"), [*((one, "generate") for one in MOMENTS), ("leaving", "plan")])
def test_a_signal_once_all_is_done_changes_neither_the_answer_nor_the_record(
    here: Path, moment: str, command: str
) -> None:
    script = STRUCK.format(moment=MOMENTS[moment])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = (command, "a cat", "--json", *(FAKE if command == "generate" else ()))
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=here, env=environment, capture_output=True)
    assert done.returncode == 0 and "error" not in done.stderr.decode()
    assert done.stdout.count(b"\n") == 1 and "schema" in json.loads(done.stdout)
    if command == "generate":
        assert list((here / "sdcli-images/runs").glob("*/report.json"))


@POSIX
def test_the_line_an_interruption_ends_with_draws_the_rest(here: Path) -> None:
    """Pasted as it is: the folder has a space in its name, and is not where runs are looked for."""
    process = start(
        "generate", "a cat", "-p", "a dog", "-n", "80", "--seed", "1", "-o", "my images", "--engine", "fake", "--size",
        "256x256", cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not list((here / "my images").glob("0001-*.png")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1].decode()
    said = error.splitlines()[-1].partition("try: sdcli ")[2]
    again = start(*shlex.split(said), "--engine", "fake", cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(again.communicate(timeout=60)[0].splitlines()) < 160 and again.returncode == 0
    assert len(list((here / "my images").glob("*.png"))) == 160


@POSIX
def test_a_terminal_that_was_closed_ends_a_run_as_its_journal_says(here: Path) -> None:
    """Neither is there anybody to give the one object to."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = start(
        "generate", "a cat", "-n", "3000", "--engine", "fake", "--size", "256x256", "--json", cwd=here, stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=lambda: os.close(os.open(os.ttyname(0), 2)),
    )  # fmt: skip
    os.close(theirs)
    while not list((here / "sdcli-images").glob("0001-*.png")):
        assert process.poll() is None
    os.close(ours)
    assert process.wait(30) == 143
    (record,) = (here / "sdcli-images/runs").iterdir()
    assert json.loads((record / "run.jsonl").read_text().splitlines()[-1])["exit_code"] == 143
    assert json.loads((record / "report.json").read_text())["error"]["type"] == "terminated"


def test_no_library_can_take_a_signal_for_a_failure_of_its_own() -> None:
    from sdcli.errors import Stop

    assert issubclass(Stop, BaseException) and not issubclass(Stop, Exception)


# --- stdout


EVERYWHERE = [
    ("--version",), ("--help",), ("generate", "--help"), ("samplers",), ("samplers", "--json"), ("config", "show"),
    ("config", "path"), ("help", "exit-codes"), ("models",), ("inspect-unet", "sd15"),
    ("inspect-unet", "sd15", "--csv"),
    ("plan", "a cat"), ("plan", "a cat", "--json"), ("doctor",), ("generate", "a cat", *FAKE),
    ("generate", "a cat", *FAKE, "-q"), ("generate", "a cat", *FAKE, "--json"),
    ("generate", "a cat", *FAKE, "--json-lines"),
]  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", EVERYWHERE, ids=" ".join)
def test_results_that_cannot_be_written_are_exit_7(here: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = start(*words, cwd=here, stdout=full, stderr=subprocess.PIPE)
        error = done.communicate(timeout=60)[1].decode()
    assert done.returncode == 7 and "Traceback" not in error
    assert "error: results could not be written to stdout: the disk is full" in error and "  try: " in error
    assert error.count("error:") == 1
    if words[0] == "generate" and "--help" not in words:
        assert len(list((here / "sdcli-images").glob("*.png"))) == 1
        assert f" kept: 1 of 1 images in {here / 'sdcli-images'}" in error
        assert list((here / "sdcli-images/runs").glob("*/report.json"))


CLOSED = [("--version",), ("generate", "a cat", *FAKE), ("generate", "a cat", *FAKE, "--json"), ("plan", "a", "--json")]


@POSIX
@pytest.mark.parametrize("words", CLOSED, ids=" ".join)
def test_a_closed_stdout_is_exit_7_and_a_reader_that_left_is_0(here: Path, words: tuple[str, ...]) -> None:
    line = 'exec "$0" -m sdcli "$@" >&-'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line, sys.executable, *words], cwd=here, env=environment, capture_output=True)
    assert done.returncode == 7 and "Traceback" not in done.stderr.decode()
    assert "error: stdout is closed" in done.stderr.decode()
    reading, writing = os.pipe()
    os.close(reading)
    left = start(*words, cwd=here, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    error = left.communicate(timeout=60)[1].decode()
    assert left.returncode == 0 and "Traceback" not in error and "error:" not in error


@POSIX
def test_an_early_signal_is_a_code_also_where_nothing_can_be_said(here: Path) -> None:
    script = AT_START.format(early=True, name="SIGTERM")
    for end in (">&-", ">/dev/full") if os.path.exists("/dev/full") else (">&-",):
        line = f'exec "$0" -c "$1" --json {end}'
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["sh", "-c", line, sys.executable, script], env=environment, capture_output=True)
        assert (done.returncode, done.stderr) == (143, b"")


@POSIX
def test_with_stdout_closed_no_file_of_the_run_takes_its_place(here: Path) -> None:
    """Else what a library prints would land in the journal, or in an image."""
    script = """
import os, sys
from sdcli import files
real = files.Files.create
def create(self, path):
    file = real(self, path)
    assert file > 2, path
    return file
files.Files.create = create
from sdcli.__main__ import run
run()
"""
    line = 'exec "$0" -c "$@" >&- 2>&- <&-'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = (script, "generate", "a cat", *FAKE)
    done = subprocess.run(["sh", "-c", line, sys.executable, *words], cwd=here, env=environment)
    assert done.returncode == 7
    assert len(list((here / "sdcli-images").glob("*.png"))) == 1


# --- the disk


class Filling(files.Files):
    """The real calls, on a disk that takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, file: int, data: bytes | memoryview) -> int:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return super().write(file, data)


@pytest.mark.parametrize("more", [(), ("--json",), ("-q",)], ids=["", "json", "quiet"])
def test_a_disk_that_fills_in_mid_run_is_told_with_what_is_kept(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path, more: tuple[str, ...]
) -> None:
    """Neither the report, for which there is no room either, nor anything else hides what happened first."""
    from sdcli.cli import drawing

    disk = Filling(40_000)
    real_store, real_write = drawing.store, reports.write
    monkeypatch.setattr(drawing, "store", lambda *given, **named: real_store(*given, **named, files=disk))
    monkeypatch.setattr(reports, "write", lambda report, path: real_write(report, path, disk))
    done = sdcli(capfd, "generate", "a cat", "-n", "16", *FAKE, *more)
    kept = len(list((here / "sdcli-images").glob("*.png")))
    assert done.code == 7 and 0 < kept < 16
    told = f"{kept} of 16 images are saved in {here / 'sdcli-images'}"
    if "--json" in more:
        found: Any = done.json
        assert found["error"]["done"] == told and found["exit_code"] == 7
        assert [image["status"] for image in found["images"]].count("saved") == kept
    else:
        assert f" kept: {told}" in done.err and "the disk is full" in done.err and "report.json" not in done.err


# --- by itself, with less than was asked


@pytest.mark.parametrize("more", [(), ("-q",)], ids=["", "quiet"])
def test_a_run_with_a_suspect_image_says_so_and_what_to_try(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    from sdcli.draw import fake

    monkeypatch.setattr(fake, "_gradient", lambda seed, width, height: bytes(width * height * 3))
    done = sdcli(capfd, "generate", "a cat", *FAKE, *more)
    assert done.code == 5
    assert "error: 1 of 1 image came out as one flat colour" in done.err and "  try: the same command" in done.err


# --- by a failure that nobody foresaw


@pytest.mark.parametrize(
    ("failure", "code"),
    [pytest.param(RuntimeError("device-side assert"), 1, marks=pytest.mark.bug), (MemoryError(), 4)],
    ids=repr,
)
@pytest.mark.parametrize("where", ["drawing", "recording"])
def test_an_unforeseen_failure_leaves_a_whole_record_with_what_is_kept(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path, where: str, failure: Exception,
    code: int,
) -> None:  # fmt: skip
    from sdcli.draw import fake
    from sdcli.events import Saved

    def failing(real: Any) -> Any:
        seen: list[object] = []

        def second(self: Any, *given: Any) -> Any:
            if where == "drawing" or isinstance(given[0], Saved):
                seen.append(given)
                if len(seen) == 2:
                    raise failure
            return real(self, *given)

        return second

    if where == "drawing":
        monkeypatch.setattr(fake.Run, "_decode", failing(fake.Run._decode))
    else:
        monkeypatch.setattr(reports.Folding, "__call__", failing(reports.Folding.__call__))
    done = sdcli(capfd, "generate", "a cat", "-n", "3", *FAKE, "--json")
    assert (done.code, done.json["exit_code"], done.json["status"]) == (code, code, "partial")
    assert done.json["error"]["done"] == f"1 of 3 images in {here / 'sdcli-images'}"
    (record,) = (here / "sdcli-images/runs").iterdir()
    assert json.loads((record / "report.json").read_text())["error"] == done.json["error"]
    end = json.loads((record / "run.jsonl").read_text().splitlines()[-1])
    assert (end["type"], end["exit_code"]) == ("end", code)
