"""Every test starts in its own folders and without a network."""

from __future__ import annotations

import functools
import gc
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sdcli.cli import main
from sdcli.draw import local
from sdcli.machine.hardware import Trial
from sdcli.plan.plan import Plan
from sdcli.plan.workload import Workload

LONGEST = (  # from 20 seconds each
    "test_draw_regional.py", "test_scripts_gpu.py", "test_draw_card.py", "test_draw_refiner.py",
    "test_draw_from_image_run.py", "test_draw_setups.py", "test_draw_engine.py", "test_draw_out_of_memory.py",
    "test_draw_upscale_run.py", "test_draw_control_run.py", "test_draw_compiled.py", "test_draw_emoji.py",
    "test_models_hub.py", "test_scripts_peers.py", "test_cli_killed.py", "test_bench_engine.py",
    "test_draw_t2i_run.py", "test_draw_on_a_gpu.py", "test_draw_reference_run.py", "test_scale_cards.py",
    "test_scripts_bootstrap.py", "test_cli_endings.py", "test_bench_method.py", "test_models_hostile.py",
    "test_record_faults.py", "test_scripts_steady.py", "test_draw_union.py", "test_draw_from_image.py",
    "test_draw_on_other_gpus.py", "test_draw_control.py", "test_draw_adapters.py", "test_draw_plans.py",
    "test_draw_parity.py", "test_draw_lifetime.py", "test_cli_memory.py", "test_bench_command.py",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """These files begin first: spread over several processes, one of them at the end would run alone. Cases for
    `scripts/prove cases` are left out, unless they are asked for."""
    if "proof" not in config.option.markexpr and not any("::" in word for word in config.args):
        left_out = [item for item in items if item.get_closest_marker("proof")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("proof")]
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SDCLI_HOME and the Hub cache in a fresh folder; no settings from the person who runs the tests."""
    import os

    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("SDCLI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SDCLI_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody there
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return home


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only loopback answers."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture(autouse=True)
def exit_code_1_is_a_bug_that_was_injected(request: pytest.FixtureRequest, _exits: Exits) -> Iterator[None]:
    """No test passes in which sdcli ended with 1, but one marked `bug`, and none of those in which it did not."""
    yield
    codes = _exits.taken()
    assert (1 in codes) == (request.node.get_closest_marker("bug") is not None), f"sdcli ended with {codes}"


class Exits:
    """How each command ended, in this process or in one of its own."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.processes: list[subprocess.Popen[Any]] = []

    def taken(self) -> list[int]:
        """Since last time; a process that runs on is asked again."""
        codes = [*self.codes, *(process.returncode for process in self.processes if process.returncode is not None)]
        self.codes, self.processes = [], [process for process in self.processes if process.returncode is None]
        return codes


_SDCLI = re.compile(r"-m +(sdcli|tests\.pretend_gpu) |\bsdcli\.(cli|__main__)\b|/scripts/sdcli ")


@pytest.fixture(scope="session", autouse=True)
def _exits() -> Iterator[Exits]:
    exits, leave, begin = Exits(), main._leave, subprocess.Popen.__init__

    def left(code: int, at_once: bool) -> None:
        exits.codes.append(code)
        leave(code, at_once)

    def begun(self: subprocess.Popen[Any], *given: Any, **options: Any) -> None:
        begin(self, *given, **options)
        words = [self.args] if isinstance(self.args, (str, bytes, Path)) else self.args
        if _SDCLI.search(" ".join(f"{word} " for word in words)):
            exits.processes.append(self)

    with mock.patch.object(main, "_leave", left), mock.patch.object(subprocess.Popen, "__init__", begun):
        yield exits


@pytest.fixture(autouse=True)
def what_was_tried_stays_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test starts with no memory of this CPU. Each number type and model is still tried only once, and drawn alike in
    every test."""
    monkeypatch.setattr(local, "probe", _PROBE)
    monkeypatch.setattr(local, "tried", _tried)


_PROBE, _TRY = functools.cache(local.probe), local.tried
_KNOWN: dict[tuple[Workload, str, int, int], Trial] = {}


def _tried(plan: Plan, work: Workload, dtype: str, sides: int = 1) -> Trial:
    key = (work, dtype, sides, plan.setup.threads)
    if key not in _KNOWN:
        _KNOWN[key] = _TRY(plan, work, dtype, sides)
    return _KNOWN[key]


@pytest.fixture(autouse=True)
def libraries_are_permanent(_frozen: list[int]) -> None:
    """Whatever libraries have made by now is kept out of garbage collections. sdcli does so too where it imports them;
    here they are imported once for many runs, each of which would search 400,000 objects several times."""
    if len(sys.modules) - _frozen[0] > 100:
        _frozen[0] = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def _frozen() -> list[int]:
    return [0]
