"""scripts/sdcli makes its environment for real: its own file in a tiny checkout, tiny wheels instead of torch."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sdcli.machine import sysfs
from tests.machine import sysfs_by_hand

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and locks of POSIX")

PROJECT = '[project]\nname = "tiny"\nversion = "1"\ndependencies = ["torch>=2", "tinydep"]\n'
TOOLS = '[project.optional-dependencies]\ndev = ["tinytool"]\n'
PINS = "torch==2.13.0\ntinydep==1.0\n\n# tools\ntinytool==1.0\n"
MAIN = """import sys
import tinydep
print("args", sys.argv[1:], "tinydep", tinydep.VERSION, "path0", sys.path[0] or "empty", "env", sys.prefix)
"""


def wheel(folder: Path, name: str, version: str) -> Path:
    """A whole wheel with one module, as a build tool would write it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{inner},,\n" for inner in [*files, f"{info}/RECORD"]))
    return path


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in [("torch", "2.13.0"), ("tinydep", "1.0"), ("tinydep", "2.0"), ("tinytool", "1.0")]:
        wheel(folder, name, version)
    return folder


def checkout(folder: Path) -> Path:
    (folder / "scripts").mkdir(parents=True)
    (folder / "sdcli").mkdir()
    shutil.copy(ROOT / "scripts" / "sdcli", folder / "scripts")
    (folder / "sdcli" / "__main__.py").write_text(MAIN)
    (folder / "pyproject.toml").write_text(PROJECT + TOOLS)
    (folder / "constraints.txt").write_text(PINS)
    return folder


Environment = dict[str, str]


@pytest.fixture
def environment(wheels: Path, tmp_path: Path) -> Environment:
    """What pip is told: these wheels and nothing else; no settings of the person who runs the tests."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    variables.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), PIP_CONFIG_FILE=os.devnull)
    variables.update(PIP_CACHE_DIR=str(tmp_path / "cache"), PYTHONUTF8="1")
    return variables


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(folder / "scripts" / "sdcli"), *arguments]


def start(
    folder: Path, environment: Environment, *arguments: str, **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), env=environment, capture_output=True, text=True, encoding="utf-8", **options
    )  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> tuple[Path, str]:
    """A checkout in a folder with spaces and a quote, set up by its first run; and what that run said."""
    folder = checkout(tmp_path_factory.mktemp("made") / "it's a clone")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    variables.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), PIP_CONFIG_FILE=os.devnull, PYTHONUTF8="1")
    done = start(folder, variables, "first", "two words")
    assert done.returncode == 0, done.stderr
    assert "args ['first', 'two words'] tinydep 1.0" in done.stdout
    return folder, done.stderr


@pytest.fixture
def made(made_once: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it: the environment finds its checkout by a relative path, so it may be moved."""
    folder = tmp_path / "moved clone"
    shutil.copytree(made_once[0], folder, symlinks=True)
    return folder


def test_the_first_run_says_torch_build_and_size_before_it_fetches_and_keeps_stdout_for_results(
    made_once: tuple[Path, str],
) -> None:
    said = made_once[1].splitlines()
    assert said[0].startswith("One-time setup in .sdcli/: Python 3.") and "torch 2.13.0" in said[0]
    assert "GB to fetch" in said[1] and "GB on disk" in said[1]
    assert said[-1].startswith("  ready after")
    assert all("\r" not in line and "\x1b" not in line for line in said)


def test_the_second_run_says_nothing_and_works_from_any_folder_and_through_a_link(
    made: Path, environment: Environment, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tinydep.py").write_text("raise SystemExit('the folder one stands in was imported')")
    done = start(made, environment, "x", cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert "args ['x']" in done.stdout
    if os.name != "nt":
        link = tmp_path / "sdcli-link"
        link.symlink_to(made / "scripts" / "sdcli")
        linked = subprocess.run([sys.executable, str(link), "y"], env=environment, capture_output=True, text=True)
        assert (linked.returncode, linked.stderr) == (0, "")
        assert "args ['y']" in linked.stdout


def test_an_edit_of_the_code_counts_at_once(made: Path, environment: Environment) -> None:
    (made / "sdcli" / "__main__.py").write_text("print('edited')")
    assert start(made, environment).stdout == "edited\n"


def test_exit_code_and_standard_input_pass_through(made: Path, environment: Environment) -> None:
    (made / "sdcli" / "__main__.py").write_text("import sys; print(sys.stdin.read()); sys.exit(9)")
    done = start(made, environment, input="a prompt")
    assert (done.returncode, done.stdout) == (9, "a prompt\n")


def test_a_changed_pin_updates_the_environment_and_a_touched_file_does_not(
    made: Path, environment: Environment
) -> None:
    later = time.time() + 60
    os.utime(made / "constraints.txt", (later, later))
    touched = start(made, environment)
    assert (touched.stderr, touched.returncode) == ("", 0)
    (made / "constraints.txt").write_text(PINS.replace("tinydep==1.0", "tinydep==2.0"))
    changed = start(made, environment)
    assert changed.returncode == 0, changed.stderr
    assert "Bringing .sdcli/ up to date" in changed.stderr
    assert "tinydep 2.0" in changed.stdout
    assert start(made, environment).stderr == ""


def test_an_update_that_cannot_be_fetched_leaves_the_earlier_set_running(made: Path, environment: Environment) -> None:
    (made / "constraints.txt").write_text(PINS.replace("tinydep==1.0", "tinydep==3.0"))
    done = start(made, environment)
    assert done.returncode == 0, done.stderr
    assert "warning: not updated, using the earlier packages" in done.stderr
    assert "tinydep 1.0" in done.stdout


def test_tools_are_added_to_the_same_environment_and_survive_an_update(made: Path, environment: Environment) -> None:
    code = (
        "import importlib.machinery, sys; sys.dont_write_bytecode = True\n"
        "script = importlib.machinery.SourceFileLoader('bootstrap', 'scripts/sdcli').load_module()\n"
        "script.ready(tools=True)"
    )
    added = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=made, env=environment, check=True, capture_output=True
    )
    assert b"Adding the test and check tools" in added.stderr
    assert list((made / ".sdcli").rglob("tinytool.py"))
    assert start(made, environment).stderr == ""
    (made / "constraints.txt").write_text(PINS.replace("tinydep==1.0", "tinydep==2.0"))
    assert "tinydep 2.0" in start(made, environment).stdout
    again = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=made, env=environment, check=True, capture_output=True
    )
    assert again.stderr == b""


@POSIX
def test_a_vanished_base_python_makes_the_environment_anew(made: Path, environment: Environment) -> None:
    for name in (made / ".sdcli" / "venv" / "bin").glob("python*"):
        name.unlink()
        name.symlink_to("/gone/python")
    done = start(made, environment)
    assert "One-time setup" in done.stderr
    assert done.returncode == 0 and "tinydep 1.0" in done.stdout


@POSIX
@pytest.mark.parametrize("touched", [False, True], ids=["as it was", "after a changed pin"])
def test_a_python_that_this_user_may_not_run_is_refused_and_nothing_is_deleted(
    made: Path, environment: Environment, touched: bool
) -> None:
    for name in (made / ".sdcli" / "venv" / "bin").glob("python*"):
        name.unlink()
        name.write_bytes(b"")  # there, and not executable: not for root either
    if touched:
        (made / "constraints.txt").write_text(PINS.replace("tinydep==1.0", "tinydep==2.0"))
    before = sorted((path, path.lstat().st_mtime_ns) for path in (made / ".sdcli" / "venv").rglob("*"))
    done = start(made, environment, "generate", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"], error["type"]) == (8, 8, "device")
    assert "error: this user cannot run the Python of .sdcli/" in done.stderr and "  try: " in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((path, path.lstat().st_mtime_ns) for path in (made / ".sdcli" / "venv").rglob("*")) == before


@POSIX
@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="another user takes root")
def test_a_python_in_the_home_of_another_user_is_not_taken_for_gone(
    made: Path, environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        home = Path(open_to_all, "home")
        home.mkdir(mode=0o700)
        (home / "python").symlink_to(sys.executable)
        folder = Path(shutil.copytree(made, Path(open_to_all, "clone"), symlinks=True))
        for name in (folder / ".sdcli" / "venv" / "bin").glob("python*"):
            name.unlink()
            name.symlink_to(home / "python")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)  # with the right to delete it
        other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        base = os.path.realpath(sys.executable)
        done = subprocess.run(
            [*other, base, str(folder / "scripts" / "sdcli"), "doctor"],
            env={**environment, "HOME": open_to_all}, cwd=open_to_all, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 8 and "this user cannot run the Python of .sdcli/" in done.stderr, done.stderr
        assert (folder / ".sdcli" / "venv" / "sdcli-whole").is_file()


def test_only_pips_settings_decide_where_things_come_from_and_never_where_they_go(
    tmp_path: Path, environment: Environment
) -> None:
    """An active environment, variables that aim pip elsewhere, and a uv that knows none of pip's settings."""
    folder = checkout(tmp_path / "clone")
    active, misleading, tools = tmp_path / "active", tmp_path / "misleading", tmp_path / "tools"
    misleading.mkdir()
    (misleading / "tinydep.py").write_text("VERSION = 'misled'")
    tools.mkdir()
    (tools / "uv").write_text(f"#!/bin/sh\necho called > '{tmp_path / 'called'}'\nexit 1\n")
    (tools / "uv").chmod(0o755)
    environment |= {
        "VIRTUAL_ENV": str(active), "CONDA_PREFIX": str(active), "PYTHONPATH": str(misleading), "PIP_USER": "1",
        "PIP_TARGET": str(active), "PIP_PREFIX": str(active), "PIP_REQUIRE_VIRTUALENV": "1",
        "PATH": f"{tools}{os.pathsep}{environment['PATH']}",
    }  # fmt: skip
    done = start(folder, environment)
    assert done.returncode == 0, done.stderr
    assert "tinydep 1.0" in done.stdout
    assert str(folder / ".sdcli" / "venv") in done.stdout
    assert not active.exists()
    assert not (tmp_path / "called").exists()


def test_a_package_that_cannot_be_had_is_told_with_the_installers_own_words_and_as_json(
    tmp_path: Path, environment: Environment
) -> None:
    folder = checkout(tmp_path / "clone")
    (folder / "pyproject.toml").write_text(PROJECT.replace('"tinydep"', '"tinydep", "no-such-thing-anywhere"'))
    done = start(folder, environment, "plan", "--json")
    assert done.returncode == 3
    assert "error: setup failed: ERROR: No matching distribution found for no-such-thing-anywhere" in done.stderr
    assert "  try: the same command again" in done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["type"]) == (3, "offline")
    assert not (folder / ".sdcli" / "venv" / "sdcli-whole").exists()


@contextlib.contextmanager
def slow_index(wheels: Path) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """An index on the loopback that stops in the middle of tinydep until told to continue."""
    asked, continues = threading.Event(), threading.Event()

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").split("/")[-1]
            body: bytes
            if name.endswith(".whl"):
                body = (wheels / name).read_bytes()
            else:
                files = sorted(path.name for path in wheels.glob(f"{name}-*.whl"))
                body = "".join(f'<a href="/files/{file}">{file}</a>' for file in files).encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "application/octet-stream" if name.endswith(".whl") else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                if name.startswith("tinydep") and name.endswith(".whl") and not continues.is_set():
                    self.wfile.write(body[:50])
                    self.wfile.flush()
                    asked.set()
                    continues.wait(120)
                    body = body[50:]
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple", asked, continues
    finally:
        continues.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def online(environment: Environment) -> Callable[[str], Environment]:
    def with_index(address: str) -> Environment:
        variables = {
            name: value for name, value in environment.items() if name not in ("PIP_NO_INDEX", "PIP_FIND_LINKS")
        }
        variables |= {"PIP_INDEX_URL": address, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return variables

    return with_index


def begin(folder: Path, environment: Environment, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, *arguments), env=environment, text=True, encoding="utf-8", stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_a_set_up_interrupted_while_fetching_is_never_taken_as_whole_and_the_next_run_finishes_it(
    tmp_path: Path, wheels: Path, online: Callable[[str], Environment], number: signal.Signals
) -> None:
    folder = checkout(tmp_path / "clone")
    with slow_index(wheels) as (address, asked, continues):
        # The index of torch builds must not be asked here: no torch in this project.
        (folder / "pyproject.toml").write_text('[project]\ndependencies = ["tinydep"]\n')
        (folder / "constraints.txt").write_text("tinydep==1.0\n")
        first = begin(folder, online(address))
        assert asked.wait(60)
        os.killpg(first.pid, number)
        out, said = first.communicate(timeout=60)
        assert out == ""
        assert first.returncode == (130 if number == signal.SIGINT else 143)
        if number == signal.SIGINT:
            assert "error: setup interrupted; what was fetched is kept" in said
        assert "Traceback" not in said
        assert not (folder / ".sdcli" / "venv" / "sdcli-whole").exists()
        if number == signal.SIGTERM:
            return  # the next run is the same as after Ctrl-C
        continues.set()
        second = start(folder, online(address), timeout=120)
    assert second.returncode == 0, second.stderr
    assert "tinydep 1.0" in second.stdout


@POSIX
def test_two_first_runs_at_once_make_one_environment(
    tmp_path: Path, wheels: Path, online: Callable[[str], Environment]
) -> None:
    folder = checkout(tmp_path / "clone")
    (folder / "pyproject.toml").write_text('[project]\ndependencies = ["tinydep"]\n')
    (folder / "constraints.txt").write_text("tinydep==1.0\n")
    with slow_index(wheels) as (address, asked, continues):
        first = begin(folder, online(address), "1")
        assert asked.wait(60)
        second = begin(folder, online(address), "2")
        assert second.stderr is not None
        waiting = second.stderr.readline()
        continues.set()
        one, two = first.communicate(timeout=120), second.communicate(timeout=120)
    assert "waiting for it" in waiting
    assert (first.returncode, second.returncode) == (0, 0), (one, two)
    assert "args ['1']" in one[0] and "args ['2']" in two[0]
    assert "One-time" in one[1] and "One-time" not in two[1]


@POSIX
def test_after_a_kill_the_lock_holds_only_until_the_orphaned_installer_ends(
    tmp_path: Path, wheels: Path, online: Callable[[str], Environment]
) -> None:
    folder = checkout(tmp_path / "clone")
    (folder / "pyproject.toml").write_text('[project]\ndependencies = ["tinydep"]\n')
    (folder / "constraints.txt").write_text("tinydep==1.0\n")
    with slow_index(wheels) as (address, asked, continues):
        first = begin(folder, online(address), "1")
        assert asked.wait(60)
        first.kill()
        second = begin(folder, online(address), "2")
        assert second.stderr is not None
        assert "waiting for it" in second.stderr.readline()
        continues.set()
        out, said = second.communicate(timeout=120)
        first.communicate(timeout=60)
    assert second.returncode == 0, said
    assert "args ['2'] tinydep 1.0" in out


@POSIX
def test_a_python_without_its_venv_module_is_told_what_to_install(tmp_path: Path, environment: Environment) -> None:
    """A real Python home, every module of the real one but ensurepip (as some distributions ship it)."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    real, home = Path(os.__file__).parent, tmp_path / "home"
    library = home / "lib" / version
    library.mkdir(parents=True)
    for entry in real.iterdir():
        if entry.name not in ("ensurepip", "site-packages", "dist-packages"):
            (library / entry.name).symlink_to(entry)
    folder = checkout(tmp_path / "clone")
    environment |= {"PYTHONHOME": str(home), "PATH": str(tmp_path)}
    interpreter = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run(
        [interpreter, str(folder / "scripts" / "sdcli")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 8, done.stderr
    assert "has no venv module" in done.stderr
    assert "-venv" in done.stderr and "virtualenv" in done.stderr


@POSIX
@pytest.mark.parametrize("name", ["python3.6", "python3.7", "python3.8", "python3.9", "python3.10", "python2.7"])
def test_an_older_python_says_what_is_needed_or_goes_on_with_a_newer_one(
    name: str, tmp_path: Path, made: Path, environment: Environment
) -> None:
    old = older_python(name)
    if old is None:
        pytest.skip(f"no {name} here")
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    alone = subprocess.run(
        [old, str(checkout(tmp_path / "clone") / "scripts" / "sdcli")],
        env=environment | {"PATH": str(nowhere)}, capture_output=True,
    )  # fmt: skip
    assert alone.returncode == 8
    assert b"error: sdcli needs Python 3.11 or newer; this is" in alone.stderr
    with_env = subprocess.run([old, str(made / "scripts" / "sdcli"), "z"], env=environment, capture_output=True)
    assert with_env.returncode == 0 and b"args ['z']" in with_env.stdout
    (made / ".sdcli" / "venv" / "sdcli-whole").unlink()
    newer = tmp_path / "newer"
    newer.mkdir()
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (newer / version).symlink_to(getattr(sys, "_base_executable", sys.executable))
    handed_on = subprocess.run(
        [old, str(made / "scripts" / "sdcli"), "z"], env=environment | {"PATH": str(newer)}, capture_output=True
    )
    assert handed_on.returncode == 0, handed_on.stderr
    assert b"One-time" in handed_on.stderr and b"args ['z']" in handed_on.stdout


def older_python(name: str) -> str | None:
    """One that runs: version managers leave names on the PATH that do not."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = Path(folder) / name
        if path.is_file() and subprocess.run([path, "-c", "pass"], capture_output=True).returncode == 0:
            return str(path)
    return None


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/sdcli as a module, on a Linux machine without an NVIDIA driver whose indexes all answer."""
    loader = SourceFileLoader("launcher", str(ROOT / "scripts" / "sdcli"))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    loader.exec_module(module)
    monkeypatch.setattr(module, "nvidia_driver", lambda: None)
    monkeypatch.setattr(module, "answers", lambda address: True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return module


def listed(monkeypatch: pytest.MonkeyPatch, root: Path, maker: str, **facts: Any) -> None:
    """Linux lists one GPU of this maker, written under `root`."""
    getattr(sysfs_by_hand, maker)(root, **facts)
    gpus = sysfs.read(root, {})
    monkeypatch.setattr(sysfs, "read", lambda: gpus)


@pytest.mark.parametrize(
    ("maker", "facts", "index"),
    [
        ("amd", {}, "rocm7.2"),
        ("amd", {"target": 80003}, "cpu"),  # no torch is built for it
        ("amd", {"target": 110501}, "cpu"),  # in a processor
        ("amd", {"compute": False}, "cpu"),
        ("intel", {}, "xpu"),
        ("intel", {"integrated": True}, "cpu"),
        ("intel", {"driver": ""}, "cpu"),
    ],
)
def test_the_build_of_torch_fits_the_gpu(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, maker: str, facts: dict[str, Any], index: str
) -> None:
    listed(monkeypatch, tmp_path, maker, **facts)
    before = list(sys.path)
    build = launcher.torch_build(None, launcher.needs(False))
    assert build.index == index and sys.path == before
    first, second = launcher.pip_install(build, launcher.needs(False))
    assert f"https://download.pytorch.org/whl/{index}" in first and second[-1] not in first
    assert ("--no-deps" in first) == (index == "cpu"), "what only a build for AMD or Intel needs is on torch's index"


def test_another_torch_comes_from_the_same_index_and_one_that_is_there_from_none(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed(monkeypatch, tmp_path, "amd")
    required = launcher.needs(False)
    there = required.torch.replace("==", "-")
    assert launcher.update_build([f"{there}+rocm7.2.dist-info"], required).index is None
    assert launcher.update_build([f"{there}.dist-info"], required).index is None
    assert launcher.update_build(["torch-2.1.0+rocm6.4.dist-info"], required).index == "rocm7.2"


def test_an_index_that_does_not_answer_leaves_the_cpu(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed(monkeypatch, tmp_path, "amd")
    monkeypatch.setattr(launcher, "answers", lambda address: "rocm" not in address)
    assert launcher.torch_build(None, launcher.needs(False)).index == "cpu"


def test_the_file_parses_on_pythons_that_cannot_run_sdcli() -> None:
    tree = ast.parse((ROOT / "scripts" / "sdcli").read_text(encoding="utf-8"))
    modern = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Nonlocal, ast.Match)
    assert [type(node).__name__ for node in ast.walk(tree) if isinstance(node, modern)] == []
    functions = [node.args for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 30
    assert not any(arguments.kwonlyargs or arguments.posonlyargs for arguments in functions)
    assert not any(argument.annotation for arguments in functions for argument in arguments.args)
