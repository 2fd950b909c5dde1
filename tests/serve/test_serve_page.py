"""The page at /, in a real browser, against a real server."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import playwright.sync_api as playwright
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli import data
from sdcli.serve.bounds import Bounds
from sdcli.serve.rules import digest

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
SMALL = {"width": "64", "height": "64", "steps": "2"}
LONG = {**SMALL, "steps": "900", "num_images": "16"}

Serve = Callable[..., Any]


def fetched(server: Any, path: str, **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_every_file_of_the_page_forbids_what_it_does_not_need(serve: Serve) -> None:
    server = serve()
    files = {path.name for path in data.page().iterdir()}
    assert {"index.html", "app.js", "style.css"} <= files
    for name in files:
        status, headers, content = fetched(server, "/" if name == "index.html" else f"/{name}")
        assert status == 200 and content == (data.page() / name).read_bytes()
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        again = fetched(server, "/" if name == "index.html" else f"/{name}", **{"If-None-Match": headers["ETag"]})
        assert (again[0], again[2]) == (304, b"")
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text


# --- in the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "chromium is needed for the tests marked system"
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=list(FLAGS))
        yield started
        started.close()


class Visit:
    """A page that somebody has open, and all that went wrong in it."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.url = url
        self.console: list[str] = []
        self.asked: list[str] = []
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self) -> Any:
        self.page.goto(self.url)
        playwright.expect(self.page.locator("#need")).to_contain_text("will need")
        return self.page

    def ask(self, prompt: str, **fields: str) -> None:
        for name, value in fields.items():
            self.page.fill(f"#{name}", value)
        self.page.fill("#prompt", prompt)
        playwright.expect(self.page.locator("#generate")).to_be_enabled()
        with self.page.expect_response(lambda answer: answer.url.endswith("/v1/jobs") and answer.status == 202):
            self.page.keyboard.press("Control+Enter")

    def draw(self, prompt: str, **fields: str) -> None:
        before = self.page.locator("#gallery li").count()
        self.ask(prompt, **fields)
        playwright.expect(self.page.locator("#gallery li")).to_have_count(before + int(fields.get("num_images", 1)))


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens pages; in the end none of them has asked another host or complained of anything."""
    visits: list[Visit] = []

    def start(server: Any, **context: Any) -> Visit:
        visits.append(Visit(browser, server.url, **context))
        return visits[-1]

    yield start
    for one in visits:
        one.context.close()
        elsewhere = [url for url in one.asked if not url.startswith((one.url, "data:", "blob:"))]
        assert elsewhere == []
        assert one.console == []


def jobs(server: Any) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(fetched(server, "/v1/jobs")[2])["jobs"]
    return listed


@pytest.mark.system
def test_an_image_is_asked_for_by_keyboard_and_seen_with_its_settings(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    one.draw("a cat", **SMALL, negative_prompt="a dog", guidance="3.5")
    image = page.locator("#view img")
    playwright.expect(image).to_have_attribute("alt", "a cat")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    (job,) = jobs(server)
    (drawn,) = job["images"]
    details = page.locator("#details")
    for text in (str(drawn["settings"]["seed"]), "3.5", "a dog", "64×64", "measured", "predicted", drawn["file"]):
        playwright.expect(details).to_contain_text(text)
    playwright.expect(page.locator("#now li")).to_have_count(0)


@pytest.mark.system
def test_a_long_job_shows_its_steps_and_a_preview_and_can_be_cancelled(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    one.ask("a cat", **LONG)
    one.ask("a dog")
    playwright.expect(page.locator("#now .drawing .words")).to_contain_text(
        re.compile(r"mage \d+ of 16, step \d+ of 900")
    )
    playwright.expect(page.locator("#now .queued .words")).to_contain_text("1 before it")
    playwright.expect(page.locator("#view img")).to_have_attribute("src", re.compile("^data:image/jpeg"))
    assert 0 < float(page.locator("#now progress:visible").get_attribute("value") or 0) < 1
    page.get_by_role("button", name="Cancel: a dog").click()
    page.get_by_role("button", name="Cancel: a cat").click()
    playwright.expect(page.locator("#now li")).to_have_count(0)
    assert {job["status"] for job in jobs(server)} == {"cancelled"}


@pytest.mark.system
def test_nothing_is_lost_when_the_page_is_loaded_again(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    one.draw("a cat", **SMALL)
    one.ask("a dog", **LONG)
    page.fill("#negative_prompt", "a bird")
    page.set_input_files("#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": png(80, 48)}])
    paint(page)
    page.wait_for_function(IS_KEPT)
    page.reload()
    playwright.expect(page.locator("#gallery li")).not_to_have_count(0)
    playwright.expect(page.locator("#now .drawing .words")).to_contain_text("step")
    for name, value in {**LONG, "prompt": "a dog", "negative_prompt": "a bird"}.items():
        playwright.expect(page.locator(f"#{name}")).to_have_value(value)
    playwright.expect(page.locator("#chosen")).to_be_visible()
    assert white_share(mask_of(page)) > 0.01
    page.get_by_role("button", name="Cancel: a dog").click()
    playwright.expect(page.locator("#now li")).to_have_count(0)


@pytest.mark.system
def test_settings_of_an_image_are_used_again_and_draw_the_same(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    one.draw("a cat", **SMALL, guidance="4")
    one.draw("a dog", **{**SMALL, "steps": "3"}, guidance="")
    page.locator("#gallery button").nth(1).click()
    page.get_by_role("button", name="Use these settings").click()
    playwright.expect(page.locator("#prompt")).to_have_value("a cat")
    playwright.expect(page.locator("#lock")).to_have_attribute("aria-pressed", "true")
    page.locator("#prompt").press("Control+Enter")
    playwright.expect(page.locator("#gallery li")).to_have_count(3)
    third, _, first = (job["images"][0] for job in jobs(server))
    assert third["settings"] == first["settings"]
    pixels = [Image.open(io.BytesIO(fetched(server, image["url"])[2])).tobytes() for image in (first, third)]
    assert pixels[0] == pixels[1]


@pytest.mark.system
def test_a_new_seed_is_taken_each_time_unless_it_is_kept(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    for _ in range(2):
        one.draw("a cat", **SMALL)
    page.click("#lock")
    for _ in range(2):
        one.draw("a cat")
    page.click("#dice")
    one.draw("a cat")
    fifth, fourth, third, second, first = (job["images"][0]["settings"]["seed"] for job in jobs(server))
    assert first != second == third == fourth != fifth


@pytest.mark.system
def test_what_is_painted_is_drawn_anew_and_nothing_else(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    page.set_input_files("#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": png(160, 96)}])
    paint(page)
    one.draw("a cat", steps="4", strength="0.5")
    mask = mask_of(page)
    assert mask.size == (160, 96)
    assert mask.getpixel((80, 48)) == 255 and mask.getpixel((3, 3)) == 0 and mask.getpixel((156, 90)) == 0
    (job,) = jobs(server)
    assert job["settings"]["strength"] == 0.5 and job["settings"]["image"] and job["settings"]["mask"]
    assert (job["settings"]["width"], job["settings"]["height"]) == (160, 96)
    page.click("#undo")
    page.locator("#mask").click(position={"x": 30, "y": 20})
    mask = mask_of(page)
    assert mask.getpixel((30, 20)) == 255 and mask.getpixel((80, 48)) == 0
    page.click("#undo")
    assert "mask" not in asked_for(page)
    page.click("#without")
    assert "image" not in asked_for(page) and "strength" not in asked_for(page)


@pytest.mark.system
def test_an_image_that_is_dropped_brings_its_settings(serve: Serve, visit: Any) -> None:
    one = visit(serve())
    page = one.open()
    drop(
        page,
        "#images",
        png(
            64,
            64,
            parameters="a heron\nNegative prompt: fog\nSteps: 7, Sampler: Euler, CFG scale: 5, Seed: 12, Size: 128x64",
        ),
    )
    for name, value in {
        "prompt": "a heron",
        "negative_prompt": "fog",
        "steps": "7",
        "seed": "12",
        "width": "128",
    }.items():
        playwright.expect(page.locator(f"#{name}")).to_have_value(value)
    playwright.expect(page.locator("#sampler")).to_have_value("Euler")
    drop(page, "#start", png(64, 64))
    playwright.expect(page.locator("#chosen")).to_be_visible()


@pytest.mark.system
def test_an_image_without_settings_can_be_started_from_instead(serve: Serve, visit: Any) -> None:
    one = visit(serve())
    page = one.open()
    drop(page, "#images", png(64, 64))
    page.locator("#notice").get_by_role("button", name="Start from it").click()
    playwright.expect(page.locator("#chosen")).to_be_visible()
    assert [line for line in one.console if "status of 400" not in line] == []
    one.console.clear()  # the browser's own line for an answer of 400


@pytest.mark.system
def test_a_hostile_prompt_is_text_wherever_it_is_shown(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    drop(
        page,
        "#images",
        png(64, 64, parameters=f"{HOSTILE}\nNegative prompt: {HOSTILE}\nSteps: 2, Seed: 1, Size: 64x64"),
    )
    playwright.expect(page.locator("#prompt")).to_have_value(HOSTILE)
    one.ask(HOSTILE, steps="300", num_images="2")
    playwright.expect(page.locator("#now .title")).to_have_text(HOSTILE)
    playwright.expect(page.locator("#gallery li")).to_have_count(2)
    playwright.expect(page.locator("#details .prompt")).to_have_text(HOSTILE)
    page.get_by_role("button", name="Copy as a command").click()
    playwright.expect(page.locator("#notice")).to_contain_text("document.title")
    page.reload()
    playwright.expect(page.locator("#details .prompt")).to_have_text(HOSTILE)
    assert page.locator("img[src='x']").count() == 0 and page.locator("body script").count() == 0
    assert page.title() == "sdcli"


@pytest.mark.system
def test_a_refusal_is_told_in_words_where_it_was_asked(serve: Serve, visit: Any) -> None:
    one = visit(serve(typed={"max_ram": "1GiB"}, bounds=Bounds(width=4096, height=4096)))
    page = one.open()
    page.fill("#prompt", "a cat")
    page.fill("#width", "4096")
    page.fill("#height", "4096")
    playwright.expect(page.locator("#need")).to_contain_text("does not fit")
    page.click("#generate")
    playwright.expect(page.locator("#notice")).to_contain_text("with size")
    assert [line for line in one.console if "status of 400" not in line] == []
    one.console.clear()


@pytest.mark.system
def test_a_key_is_asked_for_once_and_sent_with_everything(serve: Serve, visit: Any) -> None:
    server = serve()
    server.guard.rules = replace(server.guard.rules, keys=(digest("right"),))
    one = visit(server)
    one.page.goto(one.url)
    one.page.fill("#key", "wrong")
    one.page.keyboard.press("Enter")
    playwright.expect(one.page.locator("#key_wrong")).to_contain_text("does not take")
    one.page.fill("#key", "right")
    one.page.keyboard.press("Enter")
    playwright.expect(one.page.locator("#need")).to_contain_text("will need")
    one.draw("a cat", **SMALL)
    image = one.page.locator("#view img")
    playwright.expect(image).to_have_attribute("src", re.compile("^blob:"))
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    one.page.reload()
    playwright.expect(one.page.locator("#gallery img")).to_have_count(1)
    assert not any("right" in url for url in one.asked)
    assert [line for line in one.console if "status of 401" not in line] == []
    one.console.clear()


@pytest.mark.system
def test_a_server_that_is_gone_is_said_to_be_gone(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    server.stop()
    page.fill("#prompt", "a cat")
    page.click("#generate")
    playwright.expect(page.locator("#notice")).to_contain_text("does not answer")
    assert [line for line in one.console if "ERR_CONNECTION" not in line] == []
    one.console.clear()


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_everything_fits_and_can_be_read(serve: Serve, visit: Any, scheme: str) -> None:
    one = visit(serve(), viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    page = one.open()
    one.draw("a cat " * 40 + "w" * 80, **SMALL)
    page.click("#plan summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(NAMELESS) == []


@pytest.mark.system
def test_the_gallery_is_walked_through_by_arrow_keys_and_images_can_be_removed(serve: Serve, visit: Any) -> None:
    server = serve()
    one = visit(server)
    page = one.open()
    for prompt in ("one", "two", "three"):
        one.draw(prompt, **SMALL)
    page.locator("#gallery button").first.focus()
    for prompt in ("two", "one"):
        page.keyboard.press("ArrowRight")
        playwright.expect(page.locator("#details .prompt")).to_have_text(prompt)
    page.get_by_role("button", name="Remove").last.click()
    playwright.expect(page.locator("#gallery li")).to_have_count(2)
    playwright.expect(page.locator("#details .prompt")).to_have_text("two")
    assert [len(job["images"]) for job in jobs(server)] == [1, 1, 0]
    assert [line for line in one.console if "status of 404" not in line] == []
    one.console.clear()  # the browser's own line, where it was still reading the image that was removed


# Texts whose colour is too near to what they stand on, by WCAG's measure.
CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility() &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).filter((element) => {
      const both = [light(parts(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
      return (both[0] + .05) / (both[1] + .05) < 4.5;
    }).map((element) => element.outerHTML.slice(0, 100));
}"""
# Controls that a screen reader has no name for.
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, progress, meter, img, canvas")]
  .filter((one) => one.checkVisibility() && !one.getAttribute("aria-label") && !one.alt && !one.labels?.length
    && !one.textContent.trim() && !one.querySelector("img[alt]")).map((one) => one.outerHTML.slice(0, 100))"""


def png(width: int, height: int, parameters: str = "") -> bytes:
    file, info = io.BytesIO(), PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def drop(page: Any, where: str, content: bytes) -> None:
    held = page.evaluate_handle(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const held = new DataTransfer();
          held.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          return held;
        }""",
        base64.b64encode(content).decode(),
    )
    page.dispatch_event(where, "drop", {"dataTransfer": held})


def paint(page: Any) -> None:
    """A short stroke over the middle."""
    playwright.expect(page.locator("#chosen")).to_be_visible()
    mask = page.locator("#mask")
    mask.hover()
    box = mask.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 8, y)
    page.mouse.down()
    page.mouse.move(x + 8, y, steps=4)
    page.mouse.up()


# The browser writes to its database beside everything else: a reload in the same moment would be faster.
IS_KEPT = """() => new Promise((resolve) => {
  const database = indexedDB.open("sdcli", 1);
  database.onsuccess = () => {
    const last = database.result.transaction("start").objectStore("start").get("last");
    last.onsuccess = () => resolve(last.result?.strokes?.length > 0);
  };
})"""


def asked_for(page: Any) -> dict[str, Any]:
    """What the page would ask for now."""
    found: dict[str, Any] = page.evaluate("() => import('/form.js').then((form) => form.body())")
    return found


def mask_of(page: Any) -> Image.Image:
    text = asked_for(page)["mask"].removeprefix("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("L")


def white_share(mask: Image.Image) -> float:
    histogram = mask.histogram()
    return sum(histogram[128:]) / sum(histogram)
