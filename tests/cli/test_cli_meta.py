"""meta: settings shown from any program's image, and copies without any metadata whose pixels are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_run import sdcli

FAKE = ("--engine", "fake")
SECRET = "secretword"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 42, "steps": 3, "cfg": 2.0, "sampler_name": "euler_ancestral", "scheduler": "normal", "denoise": 1.0,
        "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0], "model": ["4", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "builtin.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 128}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "12": {"class_type": "FreeU", "inputs": {}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def of_comfyui(name: str) -> str:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", json.dumps(GRAPH))
    Image.new("RGB", (4, 4)).save(name, pnginfo=info)
    return name


def noted(name: str, orientation: int = 6, **options: Any) -> Path:
    """An image with every kind of note that Pillow writes, and a profile."""
    from PIL import Image, ImageCms
    from PIL.PngImagePlugin import PngInfo

    tags = Image.Exif()
    tags[0x010E], tags[0x0112] = f"a {SECRET}", orientation
    tags.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + SECRET.encode()
    info = PngInfo()
    info.add_text("parameters", SECRET)
    info.add_itxt("XML:com.adobe.xmp", SECRET)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.effect_noise((40, 24), 60).convert("RGB")
    if name.endswith("png"):
        options |= {"pnginfo": info}
    elif name.endswith("jpg"):
        options |= {"comment": SECRET.encode(), "xmp": SECRET.encode()}
    else:
        options |= {"xmp": SECRET.encode()}
    image.save(name, exif=tags, icc_profile=profile, **options)
    return Path(name)


def test_comfyuis_settings_are_shown_by_their_flags(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "meta", "show", of_comfyui("a.png"))
    assert (done.code, done.err) == (0, "")
    rows = [tuple(line.split(None, 1)) for line in done.out.splitlines()]
    assert set(rows) == {
        ("dialect", "comfyui"), ("prompt", "a cat"), ("negative", "blurry"), ("--seed", "42"), ("--steps", "3"),
        ("--guidance", "2"), ("--size", "64x128"), ("--sampler", "Euler a"), ("--model", "builtin"),
        ("--emphasis", "comfy"), ("not", "used            nodes: FreeU"),
    }  # fmt: skip


def test_they_are_drawn_with(capfd: pytest.CaptureFixture[str]) -> None:
    of_comfyui("a.png")
    done = sdcli(capfd, "generate", "--settings-from", "a.png", *FAKE, "-o", "b.png", "--json")
    assert done.code == 0, done.err
    shown = sdcli(capfd, "meta", "show", "b.png", "--json").json["files"][0]
    assert (shown["dialect"], shown["values"]["prompt"], shown["values"]["seed"]) == ("sdcli", "a cat", 42)
    assert (shown["values"]["sampler"], shown["values"]["width"]) == ("Euler a", 64)


def test_every_file_is_answered_and_the_first_failure_is_the_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save("plain.png")
    done = sdcli(capfd, "meta", "show", "plain.png", of_comfyui("a.png"), "missing.png", "--json")
    first, second, third = done.json["files"]
    assert done.code == first["error"]["code"] == 9 and third["error"]["code"] == 2
    assert (first["dialect"], second["dialect"], second["error"]) == (None, "comfyui", None)
    done = sdcli(capfd, "meta", "show", "plain.png", "a.png")
    assert done.code == 9 and "plain.png has no settings" in done.err and "--seed" in done.out


@pytest.mark.parametrize("words", [(), ("shw", "a.png"), ("show",), ("strip",), ("show", "a.png", "-o", "out")])
def test_what_cannot_be_meant_is_refused(capfd: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    done = sdcli(capfd, "meta", *words)
    assert done.code == 2 and "  try: sdcli meta s" in done.err and done.err.count("\n") == 2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "p.jpg", "l.webp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_copy_has_the_same_pixels_and_nothing_else(
    capfd: pytest.CaptureFixture[str], name: str, orientation: int
) -> None:
    from PIL import Image

    options = {"p.jpg": {"progressive": True}, "l.webp": {"lossless": True}}.get(name, {})
    source = noted(name, orientation, **options)
    before = source.read_bytes()
    assert before.count(SECRET.encode()) >= 3
    done = sdcli(capfd, "meta", "strip", name)
    copy = Path(f"{source.stem}-stripped{source.suffix}")
    assert (done.code, done.out.strip()) == (0, str(copy.absolute())), done.err
    after = copy.read_bytes()
    assert SECRET.encode() not in after and source.read_bytes() == before
    with Image.open(source) as old, Image.open(copy) as new:
        assert old.tobytes() == new.tobytes() and old.info["icc_profile"] == new.info["icc_profile"]
        assert dict(new.getexif()) == ({} if orientation == 1 else {0x0112: orientation})
        assert not {"xmp", "comment", "parameters", "XML:com.adobe.xmp"} & set(new.info)
    assert sdcli(capfd, "meta", "show", str(copy)).code == 9


def test_what_stands_behind_the_image_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.jpg", "a.webp"):
        source = noted(name)
        source.write_bytes(source.read_bytes() + SECRET.encode())
        assert sdcli(capfd, "meta", "strip", name, "-o", "out").code == 0
        assert SECRET.encode() not in (Path("out") / f"a-stripped{source.suffix}").read_bytes()


def test_sdclis_own_images_lose_theirs(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("b.png", "b.jpg", "b.webp"):
        assert sdcli(capfd, "generate", SECRET, *FAKE, "-o", name).code == 0
        done = sdcli(capfd, "meta", "strip", name, "--json")
        assert done.code == 0 and SECRET.encode() not in Path(done.json["files"][0]["path"]).read_bytes()


def test_nothing_is_overwritten_and_nothing_left_over(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    source = noted("a.png")
    Path("out").mkdir()
    Path("out/a-stripped.png").write_text("mine")
    for _ in range(2):
        assert sdcli(capfd, "meta", "strip", source.name, "-o", "out").code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a-stripped-2.png", "a-stripped-3.png", "a-stripped.png",
    ]  # fmt: skip
    assert Path("out/a-stripped.png").read_text() == "mine"


def test_a_damaged_image_gives_no_copy(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp"):
        source = noted(name)
        whole = source.read_bytes()
        for end in range(0, len(whole) - 1, len(whole) // 9):
            source.write_bytes(whole[:end])
            done = sdcli(capfd, "meta", "strip", name, "-o", "out")
            assert done.code == 9 and not Path("out").exists(), (name, end, done.err)


def test_a_palette_and_its_transparency_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", SECRET)
    image = Image.effect_noise((16, 16), 80).convert("P")
    image.putpixel((0, 0), 3)
    image.save("a.png", pnginfo=info, transparency=3)
    assert sdcli(capfd, "meta", "strip", "a.png").code == 0
    with Image.open("a.png") as old, Image.open("a-stripped.png") as new:
        assert new.mode == "P" and old.convert("RGBA").tobytes() == new.convert("RGBA").tobytes()
        assert new.convert("RGBA").getextrema()[3][0] == 0


def test_a_folder_that_cannot_be_written_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    noted("a.png")
    Path("out").write_text("a file")
    done = sdcli(capfd, "meta", "strip", "a.png", "-o", "out")
    assert done.code == 7 and "could not write" in done.err
