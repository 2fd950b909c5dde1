"""The drawing and the page: well-formed, self-contained, and right when a browser has laid them out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.inspect import diagram, page
from sdcli.inspect.facts import At, Inspection, inspect, native_size
from sdcli.inspect.source import of_family

NAMES = ["sd15", "sdxl", "refiner", "unet2015"]
SVG = "{http://www.w3.org/2000/svg}"


def look(name: str) -> Inspection:
    source = of_family(name)
    width, height = native_size(source)
    return inspect(source, At(width=width, height=height))


@pytest.mark.parametrize("name", NAMES)
def test_the_svg_is_well_formed_and_fetches_nothing(name: str) -> None:
    text = diagram.svg(look(name))
    root = ElementTree.fromstring(text)
    blocks = {group.get("data-block") for group in root.iter(f"{SVG}g") if group.get("data-block")}
    assert blocks == {b.name for b in look(name).unet.blocks if b.role in ("down", "mid", "up")}
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme:dark" in text


def test_the_page_fetches_nothing_and_holds_every_layer() -> None:
    text = page.html(look("sd15"))
    assert re.findall(r"https?://[^\"<]+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(link|img|iframe|script[^>]+src)", text)
    assert text.count("<tr>") > 423
    about = json.loads(re.search(r'id="about">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert "10,524,480 parameters" in about["down_blocks.0"]


def test_foreign_names_do_not_become_markup() -> None:
    one = look("sd15")
    evil = replace(one, source=replace(one.source, title="<script>alert(1)</script>&\x1b[31m"))
    for text in (diagram.svg(evil), page.html(evil)):
        assert "<script>alert" not in text
        assert "\x1b" not in text
    ElementTree.fromstring(diagram.svg(evil))


CHECK = """
<script>
const svg=document.querySelector('svg'),box=svg.getBoundingClientRect(),faults=[];
for(const t of svg.querySelectorAll('text')){const b=t.getBoundingClientRect();
 if(b.left<box.left||b.right>box.right||b.top<box.top||b.bottom>box.bottom)faults.push('outside: '+t.textContent)}
for(const g of svg.querySelectorAll('g.block')){const c=g.querySelector('.card').getBoundingClientRect();
 const bars=[...g.querySelectorAll('.work,.weights')],nums=[...g.querySelectorAll('.num')];
 for(const t of g.querySelectorAll('text')){const b=t.getBoundingClientRect();
  if(b.left<c.left||b.right>c.right)faults.push('out of its box: '+t.textContent)}
 bars.forEach((bar,i)=>{if(bar.getBoundingClientRect().right>nums[i].getBoundingClientRect().left)
  faults.push('bar under number: '+g.dataset.block)})}
const cards=[...svg.querySelectorAll('.card')].map(c=>c.getBoundingClientRect());
cards.forEach((a,i)=>cards.slice(i+1).forEach(b=>{
 if(a.left<b.right&&b.left<a.right&&a.top<b.bottom&&b.top<a.bottom)faults.push('boxes overlap')}));
document.title='laid out '+cards.length;
const out=document.createElement('pre');out.id='faults';
out.textContent=JSON.stringify(faults);document.body.append(out);
</script>
"""


def chromium(*words: str) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "chromium is needed for the tests marked system"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
    return subprocess.run([program, *flags, *words], capture_output=True, check=True, timeout=120)


@pytest.mark.system
@pytest.mark.parametrize("name", NAMES)
def test_a_browser_lays_the_drawing_out_without_collisions(name: str, tmp_path: Path) -> None:
    file = tmp_path / "u.html"
    file.write_text(page.html(look(name)).replace("</body>", CHECK + "</body>"), encoding="utf-8")
    text = chromium("--window-size=1280,1000", "--dump-dom", file.as_uri()).stdout.decode()
    assert f"laid out {len([b for b in look(name).unet.blocks if b.role in ('down', 'mid', 'up')])}" in text
    faults = re.search(r'<pre id="faults">(.*?)</pre>', text)
    assert faults is not None
    assert json.loads(faults[1]) == []


HOVER = """
<script>
const g=document.querySelector('g.block[data-block="mid_block"]'),b=g.getBoundingClientRect();
g.dispatchEvent(new PointerEvent('pointermove',{bubbles:true,clientX:b.left+5,clientY:b.top+5}));
g.dispatchEvent(new MouseEvent('click',{bubbles:true}));
</script>
"""


@pytest.mark.system
def test_hovering_shows_and_clicking_opens_the_layers(tmp_path: Path) -> None:
    file = tmp_path / "u.html"
    file.write_text(page.html(look("sd15")).replace("</body>", HOVER + "</body>"), encoding="utf-8")
    text = chromium("--dump-dom", file.as_uri()).stdout.decode()
    tip = re.search(r'<div id="tip"[^>]*class="on"[^>]*>(.*?)</div>', text, re.DOTALL)
    assert tip is not None
    assert "97,038,080 parameters" in tip[1]
    assert re.search(r'<details id="layers-mid_block" open', text)


@pytest.mark.system
def test_light_and_dark_differ(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "u.svg").write_text(diagram.svg(look("sd15")), encoding="utf-8")
    corners = {}
    for scheme, flags in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        shot = tmp_path / f"{scheme}.png"
        chromium(*flags, "--window-size=1200,830", f"--screenshot={shot}", (tmp_path / "u.svg").as_uri())
        with Image.open(shot) as image:
            pixels = image.convert("RGB")
            corners[scheme] = pixels.getpixel((5, 5))
            assert len(pixels.getcolors(1 << 24) or ()) > 30
    assert corners == {"light": (255, 255, 255), "dark": (18, 22, 28)}
