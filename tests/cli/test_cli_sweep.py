"""generate --sweep from end to end: the images of single runs, a grid, a page and tables of them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_run import sdcli
from json_valid import name_of, wrong_in

from sdcli.request import sweeps

FAKE = ("--engine", "fake", "--size", "64x64", "--seed", "7")
TWO = ("--sweep", "guidance=3,5", "--sweep", "sampler=DDIM,Euler", "--sweep", "S/R cat,dog")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(here: Path) -> dict[str, Path]:
    return {path.suffix: path for path in (here / "sdcli-images").glob("grid-*")}


def test_every_combination_is_drawn_once_and_told_before(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", *TWO, *FAKE)
    assert done.code == 0 and len(done.out.splitlines()) == 8
    assert "sweep: 2 guidance × 2 sampler × 2 S/R cat = 8 cells" in done.err and "grid: " in done.err
    listed = json.loads(files(here)[".json"].read_text())
    assert wrong_in(name_of(listed), listed) == []
    assert {(cell["guidance"], cell["sampler"], cell["prompt"]) for cell in listed["cells"]} == {
        (guidance, sampler, prompt)
        for guidance in (3.0, 5.0) for sampler in ("DDIM", "Euler") for prompt in ("a cat", "a dog")
    }  # fmt: skip
    assert {cell["seed"] for cell in listed["cells"]} == {7}
    rows = list(csv.DictReader(files(here)[".csv"].read_text().splitlines()))
    assert [row["file"] for row in rows] == [cell["file"] for cell in listed["cells"]]
    assert [row["sweep guidance"] for row in rows] == ["3", "5"] * 4, "row by row of the grid"


def test_the_grid_holds_each_image_in_its_place(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    sdcli(capfd, "generate", "a cat", "--sweep", "seed=1..3", "--sweep", "steps=2,3", *FAKE[:4])
    listed = json.loads(files(here)[".json"].read_text())
    with Image.open(files(here)[".png"]) as opened:
        grid = opened.convert("RGB")
    whole, size = grid.tobytes(), grid.width * 3
    seen = []
    for cell in listed["cells"]:
        with Image.open(here / "sdcli-images" / cell["file"]) as image:
            line = image.convert("RGB").crop((0, 20, 64, 21)).tobytes()
        places = [divmod(found.start(), size) for found in re.finditer(re.escape(line), whole)]
        seen.append({(y, x) for y, x in places})
    first = [min(found) for found in seen]
    assert first[0][1] < first[1][1] < first[2][1], "the first axis goes across"
    assert seen[0] == seen[3] and len(seen[0]) == 2, "the fake engine draws by the seed, so that rows are alike"


def test_the_page_runs_nothing_and_shows_no_text_as_markup(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = "a </dd><script>alert(1)</script>\" onload='x' cat"
    sdcli(capfd, "generate", evil, "--sweep", "S/R cat,<img src=x onerror=y>", *FAKE)
    page = files(here)[".html"].read_text()
    assert "<script" not in page and "<img src=x" not in page and "style=" not in page
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert all(not text.startswith(("http", "//", "/")) for text in re.findall(r'src="([^"]*)"', page))


def test_an_interrupted_sweep_goes_on_and_has_its_grid_then(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli.record.sinks.progress import Progress

    seen = 0

    def stop(self: Progress, event: Any) -> None:
        nonlocal seen
        seen += type(event).__name__ == "Saved"
        if seen == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", stop)
        assert sdcli(capfd, "generate", "a cat", *TWO, *FAKE).code == 130
    assert files(here) == {}
    assert sdcli(capfd, "resume", "--engine", "fake").code == 0
    listed = json.loads(files(here)[".json"].read_text())
    assert len(listed["cells"]) == 8 and {cell["status"] for cell in listed["cells"]} == {"saved"}


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (("guidanc=1,2",), "near: guidance"), (("guidance",), "is not NAME=A,B"), (("guidance=",), "no values"),
        (("guidance=3,x",), "is not a number"), (("guidance=3,3.0",), "occurs twice"),
        (("guidance=5..3",), "not a range that goes up"), (("steps=1..9:0.5",), "is not a whole number"),
        (("guidance=1,2", "guidance=3,4"), "swept twice"), (("lora=1,2",), "for a whole run"),
        (("lora.x=1,z",), "is not a weight"), (("lora.x=1,99",), "is not a weight"),
        (("model=a,b",), "for a whole run"), (("S/R",), "is not NAME=A,B"), (("S/R cat",), "then others"),
        (("S/R cow,dog",), "does not occur"), (("seed=1..200", "steps=1..100"), "more than 10000 cells"),
        (("guidance=0..99999999:0.01",), "more than 10000 cells"), (("sampler=DDIM,nope",), 'no sampler "nope"'),
        (("scheduler=karras", "sampler=Euler,DDIM"), "DDIM does not take"), (("seed=-1",), "nothing to sweep"),
        (("steps=4,2000",), "with steps=2000: DDIM takes"), (('prompt="a',), "no setting"),
        (('negative-prompt="a',), "a quote that is not closed"), (("image=a.png",), "for a whole run"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_before_anything_is_drawn(
    sweep: tuple[str, ...], says: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for one in sweep for word in ("--sweep", one)]
    done = sdcli(capfd, "generate", "a cat", *words, *FAKE, "-m", "builtin")
    assert done.code == 2 and says in " ".join(done.err.split())
    assert not (here / "sdcli-images").exists()


def test_ranges_are_decimal_and_hold_both_ends() -> None:
    def labels(text: str) -> tuple[str, ...]:
        return sweeps.read([text])[0].axis.values

    assert labels("guidance=0.4..1:0.2") == ("0.4", "0.6", "0.8", "1")
    assert labels("steps=1..4") == ("1", "2", "3", "4")
    assert labels("guidance=1,2..3,10") == ("1", "2", "3", "10")
    assert labels("seed=5..7,9") == ("5", "6", "7", "9")
    assert labels('negative-prompt="a, b",c') == ("a, b", "c")


def test_prompts_are_encoded_once_however_the_axes_stand(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--sweep", "steps=1..40", "--sweep", "S/R cat,dog", "--sweep", "guidance=2..4")
    plan = sdcli(capfd, "plan", "a cat", *words, "--json").json
    prompts = [job["prompt"] for job in plan["jobs"]]
    assert prompts == sorted(prompts) and len(prompts) == 240


def test_the_shell_offers_what_can_be_swept_and_the_schedules() -> None:
    from sdcli.cli import complete

    assert complete.values("sweep", "guid") == ["guidance=", "guidance-scale="]
    assert complete.values("scheduler", "sgm") == ["sgm-uniform"]


def test_prompts_seeds_and_images_to_start_from_are_axes_too(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "red").save(here / f"{name}.png")
    words = ("generate", "-p", "a cat", "-p", "a dog", "--image", "a.png", "--image", "b.png", "--seed", "1..2")
    done = sdcli(capfd, *words, "--sweep", "strength=0.5,1", *FAKE[:4])
    assert "2 strength × 2 prompt × 2 image × 2 seed = 16 cells" in done.err
    listed = json.loads(files(here)[".json"].read_text())
    assert len({tuple(cell["values"]) for cell in listed["cells"]}) == len(listed["cells"]) == 16


@pytest.mark.system
def test_the_page_shows_its_images_in_a_browser_and_zooms_without_a_script(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from playwright.sync_api import sync_playwright

    sdcli(capfd, "generate", "a cat", *TWO, *FAKE)
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "chromium is needed for the tests marked system"
    said: list[str] = []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(java_script_enabled=True)
        page.on("console", lambda message: said.append(message.text))
        page.goto(files(here)[".html"].as_uri())
        shown = "[...document.images].filter(image => image.offsetParent && image.naturalWidth == 64).length"
        assert page.evaluate(shown) == 8
        assert page.locator("button").nth(1).get_attribute("title").startswith("guidance 5, sampler DDIM, S/R cat cat")
        page.locator("button").nth(1).click()
        zoomed = page.locator("[popover]:popover-open")
        assert "guidance" in zoomed.inner_text() and zoomed.locator("img").bounding_box()["width"] == 64
        browser.close()
    assert said == [], "the page keeps to its own content security policy"
