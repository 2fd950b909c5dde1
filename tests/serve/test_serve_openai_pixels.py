"""What the server draws is what generate draws, to the pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai_clients import client, file, mask, opened
from PIL import Image

from sdcli.cli.main import run

SIDE = 64
ASKED = ["--seed", "7", "--steps", "2", "-q", "--no-show"]


def hashed(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def generated(folder: Path, name: str, *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        run(["generate", "a cat", *ASKED, *words, "-o", str(folder / name)])
    assert not left.value.code
    return hashed(Image.open(folder / name))


def test_images_are_those_that_generate_draws(serve: Callable[..., Any], tmp_path: Path) -> None:
    """From a prompt, and repainted: where a mask of OpenAI's is clear, and nowhere else."""
    start, marks = tmp_path / "start.png", tmp_path / "marks.png"
    start.write_bytes(file((SIDE, SIDE)))
    white = Image.new("L", (SIDE, SIDE))
    white.paste(255, (0, 0, SIDE // 2, SIDE))
    white.save(marks)
    plain = generated(tmp_path, "plain.png", "--size", f"{SIDE}x{SIDE}", "--negative-prompt", "a dog")
    edited = generated(tmp_path, "edited.png", "--image", str(start), "--mask", str(marks), "--strength", "1")

    api = client(serve(engine="local"))
    more = {"seed": 7, "num_inference_steps": 2}
    answer = api.images.generate(prompt="a cat", size=f"{SIDE}x{SIDE}", extra_body={**more, "negative_prompt": "a dog"})
    assert answer.data is not None and hashed(opened(answer.data[0])) == plain
    clear = mask((SIDE, SIDE), (0, 0, SIDE // 2, SIDE))
    answer = api.images.edit(prompt="a cat", image=start.read_bytes(), mask=clear, extra_body={**more, "strength": 1})
    assert answer.data is not None and hashed(opened(answer.data[0])) == edited
    kept = (SIDE // 2, 0, SIDE, SIDE)
    assert opened(answer.data[0]).crop(kept).tobytes() == Image.open(start).crop(kept).tobytes()
    assert opened(answer.data[0]).tobytes() != Image.open(start).tobytes()
