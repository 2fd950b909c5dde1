"""The page: whole, self-contained, and drawn by a real browser from a file."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdcli.bench import page, screen, statistics
from sdcli.bench import result as results
from sdcli.bench.result import BenchResult
from sdcli.schema import to_json

NAMES = ("dtype=fp32", "dtype=bf16")
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def sample(names: tuple[str, ...] = NAMES) -> BenchResult:
    return results.check(written(names), "sample")


def written(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """A result's JSON, with known steps: two processes of a warm-up image and a measured one."""
    configurations = [_configuration(name, 0.1 / (1 + number), number == 0) for number, name in enumerate(names)]
    return {
        "schema": "sdcli.bench/1", "version": "0.1.0", "status": "done", "stopped_by": "interval", "seconds": 12.0,
        "contended": True, "error": None, "reasons": ["load 3.0 on 2 cores before the start"],
        "work": {"key": "0" * 64, "model": "sd15", "model_hash": "x", "width": 64, "height": 64, "steps": 21,
                 "batch_size": 1, "guidance": 7.0, "sampler": "Euler", "macs_per_step": 10**12, "seed": 1},
        "configurations": configurations,
        "environment": {"machine": "m", "device": "RTX 4060", "torch": "2.13.0", "threads": 2, "platform": "Linux"},
    }  # fmt: skip


def _configuration(name: str, level: float, reference: bool) -> dict[str, Any]:
    runs = [
        {"process": process, "image": image, "warmup": image == 0, "seconds": 3.0, "event_seconds": 0.0,
         "step_bytes": [1 << 30] * 21,
         "step_seconds": [level * 2, *[level * (1 + n % 5 / 500) for n in range(19)], level * 1.5]}
        for process in range(2)
        for image in range(2)
    ]  # fmt: skip
    one: dict[str, Any] = {
        "name": name, "options": dict([name.split("=", 1)]), "setup": {"dtype": "fp32", "device": "cpu",
        "placement": "resident"}, "reference": reference, "pareto": True, "error": None,
        "phases": {"import": 3.0, "load": 1.0, "encode": 0.1, "denoise": 2.0, "decode": 0.3, "save": 0.1,
                   "cold_total": 7.0},
        "first_step_seconds": level * 2, "warmup_images": 1, "warmup_stable": True, "step": None,
        "rates": {"steps_per_second": 1 / level, "images_per_second": 0.3},
        "work_rate": {"flops_per_second": 2e12 / level, "ceiling": 4e13, "share": 0.5}, "launch_bound": None,
        "energy": {"joules_per_image": None, "source": None},
        "memory": {"predicted": {"device_peak": 1 << 30, "host_peak": 1 << 30}, "measured": {"reserved_peak": None,
                   "host_peak": 1 << 30}, "ratio": 1.0},
        "image": {"pixel_sha256": "0" * 64, "psnr": None if reference else 41.0, "identical": reference,
                  "latent_mean_abs": 0.001, "lossy": False},
        "ratio": {"value": 1.0, "low": 0.9, "high": 1.1, "verdict": "cannot-tell", "assumed": False},
        "flags": f"--{name.replace('=', ' ')}", "runs": runs,
        "picture": "data:image/png;base64,"
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=",
    }  # fmt: skip
    return one | {"step": summary(runs)}


def summary(runs: list[dict[str, Any]]) -> Any:
    images = [(run["process"], run["step_seconds"]) for run in runs if not run["warmup"]]
    return to_json(statistics.summarise(statistics.by_process(images)))


def test_every_step_is_a_mark_and_its_kind_shows() -> None:
    text = page.html(sample())
    count = {kind: len(re.findall(f'<circle class="{kind}"', text)) for kind in ("step", "first", "warm", "far")}
    assert count == {"step": 2 * 2 * 19, "first": 2 * 2, "warm": 2 * 2 * 21, "far": 2 * 2}
    assert "process 2, image 2, step 21" in text


def test_nothing_is_fetched() -> None:
    text = page.html(sample())
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', text)
    assert "url(" not in text and "@import" not in text and "<script" not in text and "http" not in text


def test_foreign_text_stays_text() -> None:
    result = written(("dtype=<img src=x onerror=alert(1)>",))
    result["work"]["model"] = '"><script>alert(1)</script>\x1b[2J'
    result["configurations"][0]["picture"] = 'data:image/png;base64,"onload="alert(1)'
    result["environment"]["device"] = "<b>\u202e"
    text = page.html(results.check(result, "sample"))
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert "\x1b" not in text and "\u202e" not in text


def test_a_row_that_could_not_be_measured_says_why() -> None:
    result = sample()
    failed = replace(
        result.configurations[1], name="storage=fp8", step=None, error={"message": "storage=fp8 cannot be here"},
        runs=(),
    )  # fmt: skip
    result = replace(result, configurations=(*result.configurations, failed))
    assert "storage=fp8 cannot be here" in page.html(result)
    assert any("storage=fp8 cannot be here" in line for line in screen.render(result))
    assert any("storage=fp8 cannot be here" in line for line in screen.markdown(result))


@pytest.mark.parametrize("width", (60, 80, 120))
def test_screens_stay_within_their_width(width: int) -> None:
    for names in (("dtype=fp32",), ("dtype=fp32", "dtype=bf16")):
        result = sample(names)
        assert max(map(len, screen.render(result, width))) <= width


def test_the_method_is_said_as_it_was() -> None:
    result = sample()
    said = screen.methods(result)
    assert "2 processes per configuration" in said and "2 TFLOP a step" in said and "on a busy machine" in said
    assert "agreed within 2 %" in said
    first, other = result.configurations
    result = replace(result, configurations=(replace(first, warmup_stable=False), other))
    assert "did not all agree" in screen.methods(result)


def test_a_step_or_two_have_no_interval() -> None:
    data = written(("dtype=fp32",)) | {"stopped_by": "max-time"}
    (one,) = data["configurations"]
    one["runs"] = [{**one["runs"][1], "image": 0, "step_seconds": [0.2, 0.1, 0.1]}]
    one["step"] = summary(one["runs"])
    result = results.check(data, "sample")
    for text in ("\n".join(screen.render(result)), "\n".join(screen.markdown(result)), page.html(result)):
        assert "too few steps for an interval" in text and "±" not in text


def test_the_histogram_shows_where_the_steps_are() -> None:
    text = screen.histogram([0.1] * 90 + [0.124] * 10)
    assert text.startswith("█") and text[23] == "▁" and text[1:23].strip() == ""
    assert text.endswith("100.0 ▸ 124.0 ms")
    assert screen.histogram([0.1] * 3, ascii=True).isascii() is False  # the pointer; plain() turns it into >


@pytest.mark.system
@pytest.mark.skipif(not BROWSER, reason="needs chromium")
def test_a_browser_draws_the_page_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.html"
    path.write_text(page.html(sample()), encoding="utf-8")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [*words, "--window-size=1200,1600", f"--screenshot={shot}", path.as_uri()], capture_output=True, timeout=120
    )
    assert done.returncode == 0 and shot.read_bytes().startswith(b"\x89PNG")
    colours = _colours(shot)
    assert {(42, 111, 201), (199, 119, 0)} <= colours  # steps and first steps, as the light style names them
    dom = subprocess.run([*words, "--dump-dom", path.as_uri()], capture_output=True, timeout=120, text=True).stdout
    assert dom.count("<circle") == 168 and dom.count("<svg") == 6


def _colours(path: Path) -> set[tuple[int, int, int]]:
    from PIL import Image

    with Image.open(path) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    return {colour for _, colour in colours or ()}  # type: ignore[misc]


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    result = sample()
    results.write(result, tmp_path / "r.json")
    assert results.read(tmp_path / "r.json") == result


def test_a_result_of_an_older_sdcli_is_read(tmp_path: Path) -> None:
    """Keys that came later are filled in; those of a newer sdcli are ignored."""
    data = written() | {"of_a_newer_sdcli": 1}
    del data["error"]
    for one in data["configurations"]:
        del one["energy"], one["picture"], one["step"]["unstable_because"], one["ratio"]["assumed"]
        for run in one["runs"]:
            del run["step_bytes"], run["event_seconds"]
    older = results.check(data, "older.json")
    assert older.configurations[0].processes() == sample().configurations[0].processes()
    assert page.html(older) and screen.render(older)
