"""ControlNets on the command line: what is asked, refused, said and recorded."""

import json
from pathlib import Path

import pytest
from cli_run import sdcli
from PIL import Image  # noqa: TID253

from scripts import make_checkpoint
from sdcli.record.metadata import read

FAKE = ("--engine", "fake", "--no-show")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1.5, a ControlNet for it, one for SDXL, and a T2I-Adapter."""
    root = tmp_path_factory.mktemp("models")
    make_checkpoint.write_folder(root / "tiny", "sd15", tiny=True)
    make_checkpoint.write_controlnet_folder(root / "lines", "sd15", tiny=True)
    make_checkpoint.write_controlnet_folder(root / "large", "sdxl", tiny=True)
    make_checkpoint.write_t2i_folder(root / "sketch", "sd15", tiny=True, channels=1)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "lines", "large", "sketch"):
        (tmp_path / name).symlink_to(models / name)
    room = Image.new("RGB", (96, 64), (200, 180, 160))
    room.paste((20, 20, 20), (30, 20, 60, 50))
    room.save("room.png")
    return tmp_path


WORDS = ("a cat", "-m", "tiny", "--size", "64x64", "-s", "4", "--seed", "7")


def test_a_controlnet_is_planned_said_and_recorded(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (*WORDS, "--control", "lines=room.png:0.8:0-0.5", "--control-from", "canny", "--save-control")
    done = sdcli(capfd, "generate", *words, *FAKE)
    assert done.code == 0, done.err
    assert "with ControlNet lines" in done.err
    assert "control image: sdcli-images/control-room-canny-64x64.png" in done.err
    with Image.open("sdcli-images/control-room-canny-64x64.png") as seen:
        assert seen.size == (64, 64) and {colour for _, colour in seen.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    with Image.open("sdcli-images/0001-a-cat-7.png") as image:
        parameters, chunk = image.info["parameters"], json.loads(image.info["sdcli"])
    assert 'ControlNet 0: "Module: canny, Model: lines [' in parameters
    assert parameters.index("ControlNet 0") < parameters.index(", Model: ", parameters.index('Balanced"'))
    assert "Weight: 0.8" in parameters and "Guidance End: 0.5" in parameters
    (control,) = chunk["job"]["controls"]
    assert (control["net"], control["weight"], control["end"], control["made"]) == ("lines", 0.8, 0.5, "canny")
    assert [one["kind"] for one in chunk["setup"]["adapters"]] == ["controlnet"]
    assert str(here) not in json.dumps(chunk)
    assert read.read("sdcli-images/0001-a-cat-7.png").unknown == {"Control": "lines=room.png"}


def test_other_readers_take_the_right_model_from_it(capfd: pytest.CaptureFixture[str]) -> None:
    from sd_parsers import ParserManager

    assert sdcli(capfd, "generate", *WORDS, "--control", "lines=room.png", *FAKE).code == 0
    parsed = ParserManager().parse("sdcli-images/0001-a-cat-7.png")
    assert parsed is not None and [model.name for model in parsed.models] == ["tiny"]


def test_a_t2i_adapter_goes_through_the_same_flag(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", *WORDS, "--control", "sketch=room.png:0.7", "--control", "lines=room.png", *FAKE)
    assert done.code == 0, done.err
    assert "with T2I-Adapter sketch, ControlNet lines" in done.err
    with Image.open("sdcli-images/0001-a-cat-7.png") as image:
        parameters, chunk = image.info["parameters"], json.loads(image.info["sdcli"])
    assert [one["kind"] for one in chunk["setup"]["adapters"]] == ["t2i-adapter", "controlnet"]
    sha256 = chunk["setup"]["adapters"][0]["sha256"]
    assert f'ControlNet 0: "Module: none, Model: sketch [{sha256[:8]}], Weight: 0.7' in parameters


def test_an_image_for_two_nets_is_saved_once_and_two_of_one_name_twice(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "other").mkdir()
    Image.new("RGB", (96, 64), (0, 0, 0)).save("other/room.png")
    nets = ("lines=room.png", "sketch=room.png:0.5", "lines=other/room.png")
    words = [word for net in nets for word in ("--control", net)]
    done = sdcli(capfd, "generate", *WORDS, *words, "--save-control", *FAKE)
    assert done.code == 0 and done.err.count("control image:") == 2, done.err
    saved = sorted(path.name for path in Path("sdcli-images").glob("control-*"))
    assert saved == ["control-room-none-64x64-2.png", "control-room-none-64x64.png"]


def test_the_plan_counts_it(capfd: pytest.CaptureFixture[str]) -> None:
    plain = sdcli(capfd, "plan", *WORDS, "--as-if", "cuda:8GiB", "--json").json
    plan = sdcli(capfd, "plan", *WORDS, "--control", "lines=room.png", "--as-if", "cuda:8GiB", "--json").json
    assert "controlnet" in plan["model"]["components"]
    weights = [
        next(phase["weights"] for phase in one["footprint"]["phases"] if phase["name"] == "denoise")
        for one in (plain, plan)
    ]
    assert weights[1] > weights[0]


def test_lines_have_controls_of_their_own(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": "a cat", "control": "lines=room.png"}, {"prompt": "a dog"}]
    (here / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = sdcli(capfd, "plan", "--prompts", "lines.jsonl", *WORDS[1:], "--json").json
    assert [[control["net"] for control in job["controls"]] for job in plan["jobs"]] == [["lines"], []]


def test_from_files_to_a_file_it_draws_another_image(capfd: pytest.CaptureFixture[str]) -> None:
    """For real, with a tiny model."""
    hashes = set()
    lines = ["--control", "lines=room.png"]
    for more in ([], lines, [*lines, "--guess-mode"], ["--control", "sketch=room.png"]):
        report = sdcli(capfd, "generate", *WORDS, *more, "--no-show", "--json").json
        assert report["status"] == "done", report
        hashes.add(report["images"][0]["pixel_sha256"])
    assert len(hashes) == 4


REFUSED = [
    (["--control", "lines"], 2, '--control: "lines" is not MODEL=FILE'),
    (["--control", "lines=nothing.png"], 2, "there is no file nothing.png"),
    (["--control", "lines=room.png:1:0.6-0.4"], 2, "--control: 0.6-0.4 is not a part of 0-1"),
    (["--control", "nothing=room.png"], 3, 'no ControlNet "nothing"'),
    (["--control", "large=room.png"], 9, "large is a ControlNet for SDXL; tiny is Stable Diffusion 1.5"),
    (["--control", "tiny/unet=room.png"], 9, "is a UNet"),
    (["--control-from", "canny"], 2, "--control-from needs a ControlNet and an image"),
    (["--guess-mode"], 2, "--guess-mode needs a ControlNet and an image"),
    (["--control", "sketch=room.png", "--guess-mode"], 2, "--guess-mode is for ControlNets; sketch is a T2I-Adapter"),
    (["--control", "lines=room.png", "--pin", "execution=openvino"], 2, "what ControlNets add to the UNet"),
]


@pytest.mark.parametrize(("flags", "code", "message"), REFUSED)
def test_refusals_come_before_anything_is_loaded(
    capfd: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    done = sdcli(capfd, "plan", *WORDS, *flags)
    assert message in " ".join(done.err.split()), done.err
    assert done.code == code
