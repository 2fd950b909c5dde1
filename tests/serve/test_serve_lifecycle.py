"""The server as a command: how it starts, what it says, and how it ends, whatever it is at."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
KEY = "k3y-that-nobody-can-guess"
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")


class Command:
    """`sdcli serve` in a process of its own, once it has said where it listens."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.said = tempfile.NamedTemporaryFile(dir=folder, suffix=".txt", delete=False)  # noqa: SIM115 - closed in `end`
        self.process = launched(folder, self.said, "--port", "0", "--engine", "fake", *words, **environment)
        while "http://" not in self.text():
            assert self.process.poll() is None, self.text()
            time.sleep(0.02)
        found = re.search(r"serving (\S+) at (http://\S+)", self.text())
        assert found is not None
        self.url = found[2]

    def text(self) -> str:
        return Path(self.said.name).read_text()

    def end(self, number: int | None = signal.SIGTERM) -> int:
        """Its exit code, after a signal or by itself."""
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self.said.close()
        return code

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [one for one in children if "sdcli.workers.child" in one.cmdline()]

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **headers} if data is not None else headers
        request = urllib.request.Request(self.url + path, data, sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, decoded(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, decoded(error.read())
        except OSError:
            return 0, None  # nobody answers any more

    def images(self, **fields: Any) -> tuple[int, Any]:
        return self.ask("/v1/images/generations", {"prompt": "a cat", "size": "64x64", "steps": 1, **fields})


def decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()


def loaded_by(process: int) -> set[str]:
    """The names of the libraries in its memory, as Linux lists them."""
    return {Path(one.path).name for one in psutil.Process(process).memory_maps()}


def launched(folder: Path, said: IO[bytes], *words: str, **environment: str) -> subprocess.Popen[bytes]:
    around = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    line = [sys.executable, "-P", "-m", "sdcli", "serve", *words]
    return subprocess.Popen(line, cwd=folder, env=around, stdout=subprocess.DEVNULL, stderr=said)


def refused(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    with open(folder / "refused.txt", "w+b") as said:
        code = launched(folder, said, "--engine", "fake", *words, **environment).wait(60)
        said.seek(0)
        return code, said.read().decode()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*words: str, **environment: str) -> Command:
        started.append(Command(tmp_path, *words, **environment))
        return started[-1]

    yield start
    for one in started:
        one.end(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)


def drawing(server: Command, **fields: Any) -> tuple[threading.Thread, list[Any]]:
    """A request that takes seconds, once it is drawn."""
    answers: list[Any] = []
    asked = {"n": 6, "size": "768x768", "seed": 1, **fields}
    thread = threading.Thread(target=lambda: answers.append(server.images(**asked)))
    thread.start()
    while 'sdcli_drawing{device="cpu"} 1' not in server.ask("/metrics")[1]:
        time.sleep(0.02)
    return thread, answers


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """The ends of the journals, oldest first."""
    journals = sorted((folder / "sdcli-images" / "runs").glob("*/run.jsonl"))
    return [json.loads(path.read_text().splitlines()[-1]) for path in journals]


# --- start


def test_a_server_says_where_it_is_what_it_draws_with_and_a_line_that_works(
    serving: Callable[..., Command], tmp_path: Path
) -> None:
    server = serving()
    said = server.text().splitlines()
    assert said[0] == f"serving builtin at {server.url}" and "needs" in said[1] and "GiB" in said[1]
    (line,) = (line.removeprefix("  try: ") for line in said if line.startswith("  try: "))
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")
    while server.ask("/readyz")[0] != 200:
        time.sleep(0.02)
    assert server.ask("/healthz") == (200, "ok\n")
    figures = server.ask("/metrics")[1]
    assert 'sdcli_images_total{status="saved"} 1\n' in figures and "sdcli_ready 1\n" in figures
    assert server.end() == 143
    ending = server.text().splitlines()[-2:]
    assert ending == ["terminated", " kept: 1 image"] and "Traceback" not in server.text()


def test_a_key_is_taken_from_a_file_or_the_environment_and_from_no_one_elses(
    serving: Callable[..., Command], tmp_path: Path
) -> None:
    file = tmp_path / "key file"
    file.write_text(f"{KEY}\n")
    file.chmod(0o644)
    if os.name == "posix":
        code, said = refused(tmp_path, "--api-key-file", str(file))
        assert code == 6 and "others may read the key" in said and f'try: chmod 600 "{file}"' in said
    file.chmod(0o600)
    for server in (serving("--api-key-file", str(file)), serving(SDCLI_API_KEY=KEY)):
        assert server.images()[0] == 401 and server.ask("/healthz")[0] == 200
        assert server.ask("/v1/models", Authorization=f"Bearer {KEY}")[0] == 200
        (line,) = (line.removeprefix("  try: ") for line in server.text().splitlines() if "try: " in line)
        assert KEY not in server.text()
        subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, check=True, timeout=60, env={**os.environ, "SDCLI_API_KEY": KEY}
        )
        assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "cat.png").unlink()
        assert all(KEY not in value for one in server.workers() for value in one.environ().values())
        assert KEY not in " ".join(psutil.Process(server.process.pid).cmdline())
        server.end()


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--host", "0.0.0.0"], 6, "0.0.0.0 can be reached from other machines", "sdcli serve --host 0.0.0.0 --api"),
        (["--host", "192.168.7.7"], 6, "192.168.7.7 can be reached from other machines", "--api-key-file key"),
        (["--host", "::"], 6, ":: can be reached from other machines", "--api-key-file key"),
        (["--port", "76800"], 2, "--port 76800 is not between 0 and 65535", "--port 7860"),
        (["--port", "http"], 2, '--port: "http" is not a whole number', "--port 7860"),
        (["--grace", "soon"], 2, '--grace: "soon" is not a time', "--grace 30s"),
        (["--keep", "1w"], 2, '--keep: "1w" is not a time', "--keep 30s"),
        (["--allow-origin", "*"], 2, "every page on the web", "--allow-origin https://app.example"),
        (["--allow-origin", "app.example/x"], 2, "is not an origin", "--allow-origin https://app.example"),
        (["--allow-host", "http://sd.example/"], 2, "is not a name", "--allow-host sd.example"),
        (["--api-key-file", "none"], 2, "none does not exist", "openssl rand -hex 24 > none"),
        (["--max-queue", "0"], 2, "--max-queue 0 is not between 1 and 10000", "--max-queue 16"),
        (["--max-size", "large"], 2, '--max-size: "large" is not WIDTHxHEIGHT', "--max-size 1024x768"),
        (["--model", "buildin"], 3, "buildin", "builtin"),
        (["--steps", "500"], 2, "500 steps; this server takes at most 150", "ask for less"),
        (["--portt", "1"], 2, "no option --portt; near: --port", "sdcli serve --engine fake --port 1"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_as_asked_says_why_and_what_to_type(
    words: list[str], code: int, message: str, hint: str, capfd: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from sdcli.cli.main import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        run(["serve", "--engine", "fake", *words])
    said = capfd.readouterr().err
    assert left.value.code == code and message in said and hint in said.partition("try: ")[2], said
    assert not list(tmp_path.glob("sdcli-*"))


def test_a_key_that_can_be_guessed_is_none(tmp_path: Path) -> None:
    code, said = refused(tmp_path, SDCLI_API_KEY="secret")
    assert code == 6 and "at least 16 letters" in said and "secret" not in said.replace("SDCLI_API_KEY", "")


def test_a_port_that_is_taken_is_named_with_the_next(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused(tmp_path, "--port", str(port))
    assert code == 2 and f"--port {port}: another program listens there" in said
    assert f"try: sdcli serve --engine fake --port {port + 1}" in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
def test_the_server_itself_never_loads_torch_and_is_ready_before_the_first_request(
    serving: Callable[..., Command],
) -> None:
    server = serving("--engine", "local", "--steps", "2")
    until = time.monotonic() + 120
    while server.ask("/readyz")[0] != 200:
        assert time.monotonic() < until, server.text()
        time.sleep(0.1)
    (worker,) = server.workers()
    assert any("libtorch" in name for name in loaded_by(worker.pid))
    assert server.images(size="256x256")[0] == 200
    assert not any("torch" in name for name in loaded_by(server.process.pid))
    assert [one.pid for one in server.workers()] == [worker.pid]


# --- end


@POSIX
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.proof),
        pytest.param("SIGHUP", 143, marks=pytest.mark.proof),
    ],
)  # fmt: skip
def test_what_is_drawn_is_finished_what_waits_is_answered_and_kept_and_what_comes_is_refused(
    name: str, code: int, serving: Callable[..., Command], tmp_path: Path
) -> None:
    server = serving()
    running, answers = drawing(server)
    waiting: list[Any] = []
    queued = threading.Thread(target=lambda: waiting.append(server.images(seed=7)))
    queued.start()
    while "sdcli_queue_requests 1" not in server.ask("/metrics")[1]:
        time.sleep(0.02)
    workers = server.workers()
    server.process.send_signal(getattr(signal, name))
    queued.join(30)
    assert waiting[0][0] == 503 and server.process.poll() is None
    late, error = server.images()
    assert (late, error["error"]["code"]) == (503, "shutting_down") and server.ask("/healthz")[0] == 200
    assert server.ask("/readyz")[1]["reason"] == "the server is shutting down"
    running.join(60)
    assert answers[0][0] == 200 and len(answers[0][1]["data"]) == 6
    assert server.end(None) == code and not any(worker.is_running() for worker in workers)
    assert sorted(run["status"] for run in runs_of(tmp_path)) == ["done", "interrupted"]
    assert "Traceback" not in server.text()
    (hint,) = re.findall(r"try: (sdcli resume \S+)$", server.text(), re.MULTILINE)
    again = [sys.executable, "-P", "-m", *hint.split(), "--engine", "fake"]
    subprocess.run(again, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    assert len(list((tmp_path / "sdcli-images").glob("*.png"))) == 7
    assert list((tmp_path / "sdcli-images").glob("*-7.png"))


@POSIX
def test_what_takes_longer_than_the_grace_is_left_to_be_resumed(
    serving: Callable[..., Command], tmp_path: Path
) -> None:
    server = serving("--grace", "0")
    running, answers = drawing(server)
    assert server.end() == 143
    running.join(30)
    assert len(list((tmp_path / "sdcli-images").glob("*.png"))) < 6 and len(answers) == 1
    assert [run["status"] for run in runs_of(tmp_path)] == ["interrupted"]
    (hint,) = re.findall(r"try: (sdcli resume \S+)$", server.text(), re.MULTILINE)
    again = [sys.executable, "-P", "-m", *hint.split(), "--engine", "fake"]
    subprocess.run(again, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    assert len(list((tmp_path / "sdcli-images").glob("*.png"))) == 6


@POSIX
def test_a_second_signal_ends_it_at_once(serving: Callable[..., Command], tmp_path: Path) -> None:
    server = serving("--grace", "1h", "--no-store", TMPDIR=str(tmp_path))
    running, _ = drawing(server)
    (worker,) = server.workers()
    server.process.send_signal(signal.SIGTERM)
    while server.ask("/readyz")[1].get("reason") != "the server is shutting down":
        time.sleep(0.02)
    assert server.end(signal.SIGINT) == 130
    running.join(30)
    worker.wait(10)
    assert "Traceback" not in server.text() and not list(tmp_path.glob("sdcli-*"))


@POSIX
def test_the_process_that_draws_goes_with_a_server_that_is_killed(serving: Callable[..., Command]) -> None:
    server = serving()
    running, _ = drawing(server)
    (worker,) = server.workers()
    server.process.kill()
    worker.wait(10)
    running.join(30)


def test_without_a_store_nothing_is_left(serving: Callable[..., Command], tmp_path: Path) -> None:
    server = serving("--no-store", TMPDIR=str(tmp_path))
    assert server.images()[0] == 200
    server.end()
    assert not (tmp_path / "sdcli-images").exists() and not list(tmp_path.glob("sdcli-*"))


def test_prompts_are_logged_where_that_is_asked_for(serving: Callable[..., Command]) -> None:
    quiet, open_ = serving(), serving("--log-prompts")
    for server in (quiet, open_):
        server.images(prompt="a secret cat")
        server.end()
    assert "a secret cat" in open_.text() and "a secret cat" not in quiet.text()
    assert "POST /v1/images/generations 200" in quiet.text()
