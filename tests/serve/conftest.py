"""Servers for the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Serving

from sdcli.serve.bounds import Bounds
from sdcli.serve.service import Service, Settings


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Serving]]:
    """Starts a server: serve(engine="fake", store=False, typed={"steps": "4"}). It loads nothing by itself, and any
    number of steps and images may be asked for, unless the test says otherwise."""
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path / "home"))
    running: list[Serving] = []

    def start(typed: dict[str, Any] | None = None, engine: str = "fake", **settings: Any) -> Serving:
        settings = {
            "preload": False,
            "bounds": Bounds(images=1000, steps=10_000, width=1 << 16, height=1 << 16),
            **settings,
        }
        given = {"output": str(tmp_path / "images"), **(typed or {}), "engine": engine}
        running.append(Serving(Service(Settings(typed=given, engine=engine, **settings))))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for all tests of a file, which leave it as it is."""
    typed = {"output": str(tmp_path_factory.mktemp("served")), "engine": "fake"}
    server = Serving(Service(Settings(typed=typed, engine="fake")))
    yield server
    server.stop()
