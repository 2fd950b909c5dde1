"""Names of images: what -o means, and that no text leads out of the output folder."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.errors import CannotWrite, SdcliError, Usage
from sdcli.files import Files
from sdcli.record.names import (
    DEVICES,
    Destination,
    Target,
    filled,
    inside,
    new_run,
    next_number,
    parse_template,
    prepare,
    read_output,
    sanitised,
    slug,
    values_of,
)
from sdcli.request.request import Job, Request

JOB = Job(
    index=0, prompt="a cat", negative_prompt="", seed=42, steps=25, unet_calls=25, guidance=7.0,
    width=512, height=768, sampler="DPM++ 2M Karras",
)  # fmt: skip
RUN = "20261103-142501-3f2a"


def asked(output: str | None = None, **fields: object) -> Request:
    return Request(**{"prompts": ("a cat",), "seeds": (42,), "output": output, **fields})  # type: ignore[arg-type]


def ready(request: Request, state: Path, **options: object) -> Destination:
    return prepare(request, state=state, run=RUN, model="sd15", **options)  # type: ignore[arg-type]


def first_name(destination: Destination, job: Job = JOB, number: int = 1) -> str:
    return next(destination.names(job, number))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_without_o_images_are_numbered_in_sdcli_images(here: Path, tmp_path: Path) -> None:
    destination = ready(asked(), tmp_path / "state")
    assert destination.folder == here / "sdcli-images"
    assert destination.records == here / "sdcli-images" / "runs" / RUN
    assert first_name(destination) == "0001-a-cat-42.png"
    assert not destination.records_apart
    assert list(here.iterdir()) == [], "preparing leaves nothing behind"


def test_the_next_number_follows_the_highest_one_present(here: Path) -> None:
    for name in ("0001-a-1.png", "0007-b-2.jpg", "0003-c.webp", "20240101-holiday.png", "9-x.png", "0900-notes.txt"):
        (here / name).touch()
    assert next_number(here) == 8
    assert next_number(here / "absent") == 1


def test_an_empty_slug_is_left_out(here: Path, tmp_path: Path) -> None:
    destination = ready(asked(), tmp_path)
    assert first_name(destination, replace(JOB, prompt="一只猫 🐈")) == "0001-42.png"


def test_a_taken_name_is_followed_by_the_next_number() -> None:
    destination = Destination(folder=Path("/f"), records=Path("/f/runs/r"), run=RUN, kind="numbered")
    assert list(itertools.islice(destination.names(JOB, 7), 2)) == ["0007-a-cat-42.png", "0008-a-cat-42.png"]


def test_a_taken_template_name_is_followed_by_copies() -> None:
    destination = Destination(
        folder=Path("/f"),
        records=Path("/f/runs/r"),
        run=RUN,
        kind="template",
        pattern="{model}/{seed}.jpg",
        model="sd15",
    )
    assert list(itertools.islice(destination.names(JOB), 3)) == ["sd15/42.jpg", "sd15/42-2.jpg", "sd15/42-3.jpg"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", "a-cat"),
        ("Crème brûlée, smørrebrød & Łódź", "creme-brulee-smorrebrod-lodz"),
        ("a (red:1.3) cat, [blurry], (((sharp)))", "a-red-cat-blurry-sharp"),
        ("../../etc/passwd", "etc-passwd"),
        ("Straße Ænima", "strasse-aenima"),
        ("x" * 90, "x" * 40),
        ("one two three four five six seven eight nine ten", "one-two-three-four-five-six-seven-eight"),
        ("\x1b[31m\x00\n", "31m"),
        ("", ""),
    ],
)
def test_slugs_are_short_plain_ascii(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


@pytest.mark.parametrize("device", ["con", "NUL", "com1", "LPT9", "aux.tar", "CON .x"])
def test_values_never_name_a_windows_device(device: str) -> None:
    assert sanitised(device).split(".")[0].upper() not in DEVICES


def test_a_folder_stays_a_folder_also_with_a_dot_in_its_name(here: Path) -> None:
    assert read_output("my.images") == Target("numbered", "my.images", "", "png")
    (here / "odd.png").mkdir()
    assert read_output("odd.png").kind == "numbered"
    assert read_output("new.png/").kind == "numbered"


def test_one_file_keeps_its_records_in_the_state_folder(here: Path, tmp_path: Path) -> None:
    destination = ready(asked("out/cat.png"), tmp_path / "state")
    assert (destination.kind, destination.folder, destination.pattern) == ("file", here / "out", "cat.png")
    assert destination.records == tmp_path / "state" / "runs" / RUN
    assert destination.records_apart
    assert first_name(destination) == "cat.png"


def test_several_images_in_one_file_are_refused_with_a_template_that_works(here: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage) as refused:
        ready(asked("cat.png", seeds=(1, 2, 3)), tmp_path)
    assert refused.value.hint == "-o 'cat-{index}.png'"
    destination = ready(asked("cat-{index}.png", seeds=(1, 2, 3)), tmp_path)
    assert first_name(destination) == "cat-1.png"


def test_an_existing_file_is_refused_before_anything_is_drawn(here: Path, tmp_path: Path) -> None:
    (here / "cat.png").write_bytes(b"mine")
    with pytest.raises(CannotWrite, match="exists") as refused:
        ready(asked("cat.png"), tmp_path)
    assert "--overwrite" in refused.value.hint
    assert ready(asked("cat.png", overwrite=True), tmp_path).overwrite
    assert (here / "cat.png").read_bytes() == b"mine"


def test_the_extension_decides_the_format_unless_format_was_asked_for(here: Path, tmp_path: Path) -> None:
    assert ready(asked("cat.JPEG"), tmp_path).format == "jpg"
    assert ready(asked("{seed}.webp"), tmp_path).format == "webp"
    assert ready(asked("cat.jpg", format="jpg"), tmp_path, origins={"format": "flag"}).format == "jpg"
    with pytest.raises(Usage, match="--format says png"):
        ready(asked("cat.jpg"), tmp_path, origins={"format": "flag"})
    with pytest.raises(Usage, match="not gif"):
        ready(asked("cat.gif"), tmp_path)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{index:04d}-{slug}-{seed}.png", "0001-a-cat-42.png"),
        ("{model}/{width}x{height}/{seed:010d}_{steps}.png", "sd15/512x768/0000000042_25.png"),
        ("{run}", f"{RUN}.png"),
        ("{{{seed}}}.png", "{42}.png"),
        ("картины-{seed}.png", "картины-42.png"),
    ],
)
def test_templates_are_filled(here: Path, tmp_path: Path, template: str, name: str) -> None:
    assert first_name(ready(asked(template), tmp_path)) == name


def test_a_field_left_empty_takes_its_dash_along() -> None:
    destination = Destination(folder=Path("/f"), records=Path("/f/runs/r"), run=RUN, kind="template", pattern="x")
    values = values_of(destination, replace(JOB, prompt="猫"))
    assert filled(parse_template("{slug}-{seed}.png"), values) == "42.png"
    assert filled(parse_template("{seed}-{slug}.png"), values) == "42.png"
    assert filled(parse_template("{slug}.png"), values) == "image.png"
    assert filled(parse_template("{seed}-{slug}-{steps}.png"), values) == "42-25.png"


@pytest.mark.parametrize(
    "template",
    [
        "{prompt}.png", "{seed.real}.png", "{0.__class__}.png", "{seed!r}.png", "{seed:>9}.png", "{seed:0999d}.png",
        "{slug:03d}.png", "{seed", "seed}", "{}", "{seed}/../x.png", "{seed}//x.png", "{seed}/", "{seed}/. .png/..",
        "{seed}:x.png", "{seed}\\x.png", "{seed}.tiff", "{seed}" + "x" * 300 + ".png", "{seed}\x00.png",
        "{seed}\x1b.png",
    ],
)  # fmt: skip
def test_bad_templates_are_usage_errors_before_anything_heavy(template: str) -> None:
    with pytest.raises(Usage) as refused:
        read_output(template)
    assert refused.value.hint


def test_an_unknown_field_lists_the_known_ones() -> None:
    with pytest.raises(Usage, match=r"no field \{promt\}.*\{slug\}"):
        read_output("{promt}.png")


WORDS = [
    "a cat", "..", "../", "/", "\\", "C:", "con", "NUL.txt", "{seed}", "{index:04d}", "{slug}", "{model}", "{run}",
    "{", "}", "{{", "}}", "{0.__globals__}", "%s", "$(id)", "`id`", "\x00", "\x1b]0;x\x07", "\n", "\r", "\t", "\u202e",
    "\u200b", "\ud800", "\udcff", "é", "ｗｉｄｅ", "一只猫", "🐈" * 30, "x" * 300, " ", ".", "-", "--", "~",
    "~root", "*",
    "?", "<", ">", "|", '"', "'", ".png", ".jpg", ".gif", ".exe", "․․/", "‥/", "／", "＼", "com¹", "aux.",
    "file:///etc/passwd",
]  # fmt: skip


def hostile(chance: random.Random) -> str:
    return "".join(chance.choice(WORDS) for _ in range(chance.randint(1, 6)))


def test_five_thousand_hostile_outputs_prompts_and_models_stay_in_the_folder(tmp_path: Path) -> None:
    chance = random.Random(5000)
    folder = tmp_path / "out"
    folder.mkdir()
    safe = refused = 0
    for _ in range(5000):
        output = hostile(chance)
        job = replace(JOB, prompt=hostile(chance), seed=chance.randrange(2**63), index=chance.randrange(10**6))
        try:
            target = read_output(output)
        except Usage as error:
            assert error.message.isprintable() and error.hint.isprintable()
            refused += 1
            continue
        destination = Destination(
            folder=folder, records=tmp_path / "r", run=hostile(chance), kind=target.kind, pattern=target.pattern,
            format=target.format, model=hostile(chance),
        )  # fmt: skip
        for name in itertools.islice(destination.names(job, 3), 2):
            path = inside(folder, name)
            assert path.resolve().is_relative_to(folder)
            assert len(os.fsencode(path.name)) <= 200
            assert not any(ord(c) < 32 or ord(c) == 127 for c in name)
            assert path.suffix in (".png", ".jpg", ".webp") or target.kind != "numbered"
            if target.kind != "file":  # what the user typed as one file's name is his own affair
                assert all(part.split(".")[0].upper() not in DEVICES for part in name.split("/"))
                assert not path.name.startswith((".", "-"))
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_dir():
                path.write_bytes(b"")
        safe += 1
    assert safe > 1000 and refused > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_a_typed_error_or_a_safe_name(output: str, prompt: str, model: str) -> None:
    try:
        target = read_output("{seed}" + output)
    except Usage:
        return
    destination = Destination(
        folder=Path("/out"), records=Path("/r"), run=RUN, kind="template", pattern=target.pattern, model=model
    )
    name = first_name(destination, replace(JOB, prompt=prompt))
    assert not name.startswith("/") and ".." not in name.split("/")


def test_a_link_in_the_folder_cannot_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sd15").symlink_to(tmp_path)
    with pytest.raises(CannotWrite, match="would be outside"):
        inside(folder, "sd15/1.png")
    assert inside(folder, "other/1.png") == folder / "other/1.png"


def test_a_file_where_the_folder_should_be_is_cannot_write(here: Path, tmp_path: Path) -> None:
    (here / "taken").write_bytes(b"")
    (here / "dangling").symlink_to(here / "nowhere")
    for output in ("taken", "taken/images", "taken/{seed}.png", "dangling"):
        with pytest.raises(CannotWrite, match="a file, not a folder") as refused:
            ready(asked(output), tmp_path)
        assert (refused.value.code, refused.value.hint != "") == (7, True)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_is_reported_at_once(here: Path, tmp_path: Path, number: int) -> None:
    class Refusing(Files):
        def create(self, path: Path) -> int:
            raise OSError(number, os.strerror(number))

    with pytest.raises(CannotWrite, match="sdcli-images") as refused:
        ready(asked(), tmp_path, files=Refusing())
    assert refused.value.done == "nothing was loaded or downloaded"


def test_too_little_room_is_reported_with_need_and_free(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 41_000_000))
    assert ready(asked(), tmp_path).kind == "numbered"
    with pytest.raises(CannotWrite, match="41 MB free; 100 images need") as refused:
        ready(asked(seeds=tuple(range(100))), tmp_path)
    assert refused.value.details["free"] == 41_000_000


def test_a_webp_larger_than_the_format_allows_is_refused(here: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage, match="16383"):
        ready(asked("cat.webp", width=20_000), tmp_path)


def test_run_names_sort_by_time_and_differ() -> None:
    """Also of a server that draws many in a second."""
    names = {new_run() for _ in range(500)}
    assert len(names) == 500
    assert all(sanitised(name) == name and len(name) == 24 for name in names)


def test_every_error_is_typed_when_the_path_is_absurd(here: Path, tmp_path: Path) -> None:
    for output in ("x" * 5000, "a/" * 3000 + "b", "\x00", "\ud800", ""):
        with pytest.raises(SdcliError):
            ready(asked(output), tmp_path)
