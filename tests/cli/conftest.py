"""What the tests of commands share: a hub to fetch from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from fake_hub import FakeHub, repository


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub on loopback with a tiny model, and SD1.5's own name for another; the folder to draw in is empty."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import close_session

    close_session()
    made = FakeHub()
    made.repositories["someone/tiny"] = repository()
    made.repositories["stable-diffusion-v1-5/stable-diffusion-v1-5"] = repository(
        commit="451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    )
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.chdir(tmp_path)
    yield made
    close_session()
    made.close()
