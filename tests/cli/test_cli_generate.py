"""generate from end to end, with the engine that needs no torch."""

import hashlib
import json
import signal
import subprocess
from pathlib import Path

import pytest
from cli_run import sdcli, start

from sdcli.machine import memories

FAKE = ("--engine", "fake", "--size", "64x64")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_image_appears_and_its_path_is_all_that_stdout_says(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", *FAKE, "--seed", "7")
    assert (done.code, done.out) == (0, "sdcli-images/0001-a-cat-7.png\n")
    assert (here / "sdcli-images/0001-a-cat-7.png").read_bytes().startswith(b"\x89PNG")
    assert "seed 7" in done.err


def test_json_is_one_report_whose_hashes_are_true(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    report = sdcli(capfd, "generate", "a cat", "-n", "3", *FAKE, "--seed", "4", "--json").json
    assert (report["schema"], report["status"], report["exit_code"]) == ("sdcli.report/1", "done", 0)
    assert [image["seed"] for image in report["images"]] == [4, 5, 6]
    for image in report["images"]:
        path = Path(image["path"])
        with Image.open(path) as opened:
            pixels = opened.convert("RGB").tobytes()
        assert hashlib.sha256(pixels).hexdigest() == image["pixel_sha256"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == image["file_sha256"]
    stored = json.loads((Path(report["folder"]) / "runs" / report["run"] / "report.json").read_text())
    assert stored["folder"] is None and stored["images"][0]["file"] == report["images"][0]["file"]
    assert "ways" not in stored["plan"]


def test_json_lines_is_one_object_an_image(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", "-n", "3", *FAKE, "--json-lines")
    assert [json.loads(line)["status"] for line in done.out.splitlines()] == ["saved"] * 3


def test_prompts_are_outer_and_seeds_inner_in_the_folder_too(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "-p", "a", "-p", "b c", "--seed", "1..2", *FAKE)
    names = ["0001-a-1.png", "0002-a-2.png", "0003-b-c-1.png", "0004-b-c-2.png"]
    assert done.out.split() == [f"sdcli-images/{name}" for name in names]


@pytest.mark.parametrize(
    ("typed", "sampler"),
    [
        (("--scheduler", "exponential"), "DPM++ 2M Exponential"),
        (("--sampler", "Euler", "--scheduler", "sgm_uniform"), "Euler SGM Uniform"),
        (("--sampler", "DPM++ 2M SDE", "--scheduler", "automatic"), "DPM++ 2M SDE Exponential"),
        (("--sampler", "euler karras"), "Euler Karras"),
        (("--scheduler", "uniform"), "DPM++ 2M"),
    ],
)
def test_a_schedule_is_the_samplers_whichever_source_names_it(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...], sampler: str
) -> None:
    monkeypatch.setenv("SDCLI_SAMPLER", "DPM++ 2M Karras")
    report = sdcli(capfd, "generate", "a cat", *FAKE, "-m", "sd15", "--seed", "-1", *typed, "--json").json
    (image,) = report["images"]
    assert report["plan"]["jobs"][0]["sampler"] == sampler
    again = sdcli(capfd, "generate", "--settings-from", image["path"], *FAKE, "-m", "sd15", "--json").json
    assert again["plan"]["jobs"][0]["sampler"] == sampler and again["images"][0]["seed"] == image["seed"]


def test_the_settings_of_an_image_draw_it_again(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "a (red:1.3) cat", "--negative", "rain", "-s", "9", "-g", "4.5", "--sampler", "heun")
    words = (*words, "-m", "sd15", "--size", "72x64")
    first = sdcli(capfd, *words, "--engine", "fake", "--json").json["images"][0]
    again = sdcli(capfd, "generate", "--settings-from", first["path"], "--engine", "fake", "--json").json["images"][0]
    for name in (
        "prompt",
        "negative_prompt",
        "seed",
        "steps",
        "guidance",
        "sampler",
        "width",
        "height",
        "pixel_sha256",
    ):
        assert again[name] == first[name], name


def test_a_flag_wins_over_the_settings_of_an_image(capfd: pytest.CaptureFixture[str]) -> None:
    first = sdcli(capfd, "generate", "a cat", *FAKE, "--seed", "1", "--json").json["images"][0]
    words = ("generate", "a dog", "--settings-from", first["path"], "--seed", "2", "--engine", "fake", "--json")
    again = sdcli(capfd, *words).json["images"][0]
    assert (again["prompt"], again["seed"], again["width"]) == ("a dog", 2, 64)


@pytest.mark.parametrize(
    "text", ["x [/red] [bold]", "\x1b]0;owned\x07 \x1b[31mred", "😀" * 2500, "一只猫", "a\u202eb", "{0.__class__} %s"]
)
def test_any_prompt_is_drawn_and_none_drives_the_terminal(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", text, *FAKE, "--seed", "1")
    assert done.code == 0
    assert "\x1b" not in done.err + done.out
    assert "\u202e" not in done.err + done.out


def test_prompts_of_a_file_bring_their_own_settings(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "p.csv").write_text('prompt,id,seed,steps\n"a cat, sitting",one,5,3\nb,two,6,\n')
    report = sdcli(capfd, "generate", "--prompts", "p.csv", "-m", "sd15", *FAKE, "--json").json
    jobs = report["plan"]["jobs"]
    assert [(job["prompt"], job["id"], job["seed"], job["steps"]) for job in jobs] == [
        ("a cat, sitting", "one", 5, 3), ("b", "two", 6, 25),
    ]  # fmt: skip


def test_stdin_is_drawn_line_by_line_as_it_comes(here: Path) -> None:
    words = ("generate", "--prompts", "-", *FAKE, "-q")
    with start(*words, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for number, word in enumerate(("first", "second"), 1):
            process.stdin.write(word.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(b"sdcli-images/000%d-%s" % (number, word.encode()))
        process.stdin.close()
        assert process.wait(20) == 0


# --- ending early


def drawing(here: Path, *words: str) -> "subprocess.Popen[bytes]":
    """A run of many images, once its first is on the disk."""
    process = start("generate", "a cat", "-n", "3000", "--engine", "fake", "--size", "256x256", *words, cwd=here,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout
    assert process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_run_keeps_what_is_done_and_says_so(here: Path, number: int, code: int, word: str) -> None:
    process = drawing(here)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert word in error.decode() and "Traceback" not in error.decode()
    (record,) = (here / "sdcli-images/runs").iterdir()
    report = json.loads((record / "report.json").read_text())
    assert report["status"] == "interrupted"
    saved = [image["file"] for image in report["images"] if image["status"] == "saved"]
    assert saved and sorted(saved) == sorted(p.name for p in (here / "sdcli-images").glob("*.png"))
    assert not list((here / "sdcli-images").glob("*.part"))


def test_a_reader_that_leaves_does_not_stop_the_drawing(here: Path) -> None:
    words = ("generate", "a cat", "-n", "5", *FAKE)
    with start(*words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        error = process.stderr.read().decode()
        assert process.wait(30) == 0
    assert "Traceback" not in error and "Exception" not in error
    assert len(list((here / "sdcli-images").glob("*.png"))) == 5


def test_two_runs_in_one_folder_never_take_each_other_s_names(here: Path) -> None:
    runs = [
        start("generate", "a cat", "-n", "20", "--seed", "1", *FAKE, "-q", cwd=here, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    listed = [run.communicate(timeout=60)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert len(set(listed[0]) | set(listed[1])) == 40


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_of_few_characters_is_no_obstacle(here: Path, encoding: str) -> None:
    process = start("generate", "一只猫", *FAKE, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    environment={"PYTHONIOENCODING": encoding})  # fmt: skip
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0
    error.decode(encoding)


def test_what_the_plan_warns_of_is_said_before_drawing_and_not_where_only_results_are_wanted(
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("generate", "a cat", "--engine", "fake", "--size", "64x64", "-s", "1")
    told = sdcli(capfd, *words).err
    assert "note: 1 step is few for DDIM" in told and "note: builtin was trained at 256×256" in told
    assert "note" not in sdcli(capfd, *words, "-q").err
    assert "note" not in sdcli(capfd, *words[:4]).err


def test_an_engine_that_draws_nothing_is_not_forecast_by_the_real_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from sdcli.asking import planning
    from sdcli.plan.remembered import key_of

    plan = planning.plan_for({"words": ["a cat"], "seeds": "1"}, "plan").plan
    key = key_of(plan.model, plan.setup, plan.jobs[:1], alone=True)
    measured = {"host_peak": 1 << 29, "load": 400.0, "step": 2.0, "picture": 1.0}
    memories.remember_run(memories.machine_of(plan.hardware), key, lambda old: measured)
    assert "7 min" in " ".join(sdcli(capfd, "plan", "a cat").out.split())
    assert "about" not in sdcli(capfd, "generate", "a cat", "--engine", "fake").err


def test_the_place_of_a_filmstrip_is_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("generate", "a cat", "--engine", "fake", "--filmstrip", "3", "-o", "cat.png")
    assert "filmstrip: cat.filmstrip.png\n" in sdcli(capfd, *words).err
    assert Path("cat.filmstrip.png").is_file()
    assert "filmstrip" not in sdcli(capfd, *words, "--overwrite", "-q").err


def test_loading_that_planning_did_already_is_told_as_loading() -> None:
    from sdcli.asking import planning
    from sdcli.cli import drawing
    from sdcli.events import Timed

    asked = planning.plan_for({"words": ["a cat"]}, "plan")._replace(imported=0.25)
    told = [event for event in drawing._events(asked, "fake", (), {}) if isinstance(event, Timed)]
    assert [event.seconds for event in told if event.phase == "import"] == [0.25, 0.0]


# --- templates


def test_a_template_is_chosen_from_by_the_seed_and_both_texts_are_in_the_image(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "words").mkdir()
    (here / "words" / "colours.txt").write_text("red\ngreen\nblue\n")
    words = ("a __colours__ {cat|dog} \\{x|y\\}", "--wildcards", "words", "--negative-prompt", "{dull|grey}", *FAKE)
    listed = sdcli(capfd, "generate", *words, "--seed", "1..12", "--dry-run")
    assert listed.code == 0 and not (here / "sdcli-images").exists()
    prompts = listed.out.splitlines()
    assert len(prompts) == 12 and len(set(prompts)) > 3 and all(text.endswith(" {x|y}") for text in prompts)
    report = sdcli(capfd, "generate", *words, "--seed", "1..12", "--json").json
    assert [job["prompt"] for job in report["plan"]["jobs"]] == prompts
    path = report["images"][4]["path"]
    assert words[0] in sdcli(capfd, "meta", "show", path).out
    from PIL import Image

    from sdcli.record.metadata import read

    stored = read.read(path).record
    assert stored is not None and (stored.job.prompt, stored.job.template) == (prompts[4], words[0])
    assert stored.job.negative_prompt in ("dull", "grey") and stored.job.negative_template == "{dull|grey}"

    with Image.open(path) as image:
        assert f"Template: {words[0]}, Negative Template: " in image.info["parameters"].replace("\\\\", "\\")
    again = sdcli(capfd, "again", path, "--engine", "fake", "--json").json
    assert again["plan"]["jobs"][0]["prompt"] == prompts[4] and again["plan"]["jobs"][0]["template"] is None
    assert again["images"][0]["pixel_sha256"] == report["images"][4]["pixel_sha256"]


def test_a_name_without_a_folder_is_plain_words_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a __colours__ cat", *FAKE)
    assert done.code == 0 and "__colours__" in done.err
