"""The line after `try:` is the one that was typed, with what was wrong in it corrected; and it works."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from cli_run import sdcli

from sdcli.cli import line
from sdcli.machine import installation, packages

ELSEWHERE = ("--as-if", "cuda:8GiB,ram:32")

# what was typed, as a shell takes it → the line offered; each of these is pasted
CORRECTED = {
    'plan "a cat, odd" -m sdxl -W 990 -H 768': 'plan "a cat, odd" -m sdxl -W 992 -H 768',
    "plan cat --width=990 -s 5": "plan cat --width=992 -s 5",
    "plan cat -W990 -s 5": "plan cat -W992 -s 5",
    "plan cat --size 100x100 -s 5": "plan cat --size 112x112 -s 5",
    "plan cat --size 100x104": "plan cat --size 112x112",
    "plan cat -W 100 -H 100": "plan cat -W 112 -H 112",
    "plan cat --steps abc": "plan cat --steps 25",
    "plan cat --steps 30.0 -m sd15": "plan cat --steps 30 -m sd15",
    "plan cat -m sdlx": "plan cat -m sdxl",
    "plan cat --seed 1-3": "plan cat --seed 1..3",
    "plan cat --seed 1,2 -n 3": "plan cat --seed 1 -n 3",
    "plan cat -n 99999": "plan cat -n 10000",
    "plan a red cat -m sdxl": 'plan "a red cat" -m sdxl',
    "plan -m sdxl a red cat --seed 7": 'plan -m sdxl "a red cat" --seed 7',
    "plan -m sdxl": 'plan "a cat" -m sdxl',
    'plan "" -s 5': 'plan "a cat" -s 5',
    "plan cat --sampler eulr": "plan cat --sampler Euler",
    "plan cat -m sd15 --sampler lcm -s 60": "plan cat -m sd15 --sampler lcm -s 50",
    "plan cat --preset mlpref": "plan cat --preset mlperf",
    "plan cat --pin vae=tile-512 --pin place=resident": "plan cat --pin vae=tile-512 --pin placement=resident",
    "plan cat --pin vae=tile-512 --pin placement=residnt": "plan cat --pin vae=tile-512 --pin placement=resident",
    "plan cat --cfg-scale 200": "plan cat --cfg-scale 100",
    "plan cat --stepz=3 -m sd15": "plan cat --steps=3 -m sd15",
    "plan cat --emphasis a111": "plan cat --emphasis a1111",
    "plan cat --max-vram lots": "plan cat --max-vram 6GiB",
    """plan 'it costs $5, "really"' -W 990""": """plan 'it costs $5, "really"' -W 992""",
    "plan cat -m sdxl --size 8192x8192 --no-fallback": "plan cat -m sdxl --size 6144x6144 --no-fallback",
    "plan cat -m sdxl -W 8192 -H 8192": "plan cat -m sdxl --size 6144x6144",
    "plan cat -m sdxl --pin placement=resident --max-vram 6":
        "plan cat -m sdxl --pin placement=resident --max-vram 6 --pin storage=fp8",
    "plan cat -m sdxl --dtype fp32 --max-vram 0.8": "plan cat -m sdxl --max-vram 0.8",
    "plan cat -m sdxl --max-vram 0.6": "plan cat -m sdxl",
    "genrate cat --engine fake": "generate cat --engine fake",
    "txt2img 'a cat' --engine fake": 'generate "a cat" --engine fake',
    "'a cat' -n 2 --engine fake": 'generate "a cat" -n 2 --engine fake',
    "a red cat --engine fake": 'generate "a red cat" --engine fake',
    "generate cat --engine fack": "generate cat --engine fake",
    "generate cat -o one.png -n 2 --engine fake": "generate cat -o one-{index}.png -n 2 --engine fake",
    "models remove": "models --help",
    "models verify builtin": "models check builtin",
    "config set stepz 5": "config show",
}  # fmt: skip


@pytest.mark.parametrize("typed", CORRECTED)
def test_the_line_that_was_typed_is_offered_corrected_and_works(
    typed: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(typed)
    beside = ELSEWHERE if words[0] == "plan" else ()
    done = sdcli(capfd, *words, *beside)
    assert done.code in (2, 3, 4), done.err
    hint = next(text for text in done.err.splitlines() if text.startswith("  try: ")).removeprefix("  try: ")
    offered = hint.partition("   ")[0]
    expected = shlex.split(CORRECTED[typed])
    assert [word for word in shlex.split(offered) if word not in beside] == ["sdcli", *expected]
    again = sdcli(capfd, *shlex.split(offered)[1:])
    assert again.code == 0, again.err


@pytest.mark.parametrize("command", [("plan", "a cat", "--device", "cpu"), ("generate", "a cat", "--device", "cpu")])
def test_a_missing_package_has_the_line_that_installs_it(
    command: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "has", lambda package: False)
    done = sdcli(capfd, *command, "--pin", "execution=openvino")
    assert done.code == 2 and "the package openvino is not installed" in done.err
    hint = next(text for text in done.err.splitlines() if text.startswith("  try: ")).removeprefix("  try: ")
    assert shlex.split(hint) == shlex.split(installation.adding("openvino", installation.find()))


def test_with_json_the_hint_is_the_same_line(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "a cat", "-W", "990", "--json")
    assert done.json["error"]["hint"] == 'sdcli plan "a cat" -W 992 --json'


@pytest.mark.parametrize("prompt", ["cat " * 400, "a\ncat", "a \x1b[31mred cat"])
def test_what_cannot_be_pasted_is_not_offered(prompt: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", prompt, "-W", "990")
    assert done.err.splitlines()[1] == "  try: --width 992"


def test_a_command_of_another_program_is_not_taken_for_a_prompt(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "img2img", "x.png")
    assert done.err.splitlines() == ['error: no command "img2img"', "  try: sdcli --help"]


def test_completion_is_installed_without_naming_a_shell(capfd: pytest.CaptureFixture[str]) -> None:
    assert "  try: sdcli --install-completion\n" in sdcli(capfd, "--install-completion", "zsh").err


def test_an_option_that_is_not_shown_is_not_offered(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "cat", "--preview-evry", "2")
    assert done.code == 2 and "no option --preview-evry" in done.err and "--preview-every," not in done.err + ","


def test_an_engine_that_does_not_exist_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", "cat"], ["bench", "--quick"]):
        done = sdcli(capfd, *command, "--engine", "foo")
        assert done.code == 2 and "local, fake" in done.err


def test_an_option_is_not_eaten_as_the_value_of_another(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", "--negative-prompt", "--engine", "fake")
    assert done.code == 2 and "--negative-prompt needs a value" in done.err
    assert 'sdcli generate "a cat" --negative-prompt VALUE --engine fake' in done.err
    meant = sdcli(capfd, "plan", "a cat", "--negative-prompt=--engine", *ELSEWHERE, "--json")
    assert meant.json["request"]["negative_prompt"] == "--engine"


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (["-p", "a cat", "a dog"], ["a cat", "a dog"]),
        (["a dog", "-p", "a cat"], ["a dog", "a cat"]),
        (["-p", "a cat", "a dog", "--prompt=an owl", "-s", "9", "a fox"], ["a cat", "a dog", "an owl", "a fox"]),
    ],
)
def test_prompts_are_drawn_in_the_order_they_were_typed(
    words: list[str], prompts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert sdcli(capfd, "plan", *words, *ELSEWHERE, "--json").json["request"]["prompts"] == prompts


def test_the_model_of_a_command_without_prompts_is_corrected_where_it_stands() -> None:
    assert line.corrected("-m sd15", ["pull", "me/none"]) == "sdcli pull sd15"
    assert line.corrected("-m sd15", ["models", "check", "me/none", "--json"]) == "sdcli models check sd15 --json"
    assert line.corrected("-m sd15", ["inspect-unet", "x.ckpt", "--layers"]) == "sdcli inspect-unet sd15 --layers"


def test_of_several_loras_the_one_that_is_meant_is_corrected_and_more_are_added() -> None:
    typed = ["generate", "cat", "--lora", "ink:0.8", "--lora", "sun"]
    assert line.corrected("--lora ink2", typed) == "sdcli generate cat --lora ink2 --lora sun"
    assert line.corrected("--lora sun:0.5", typed) == "sdcli generate cat --lora ink:0.8 --lora sun:0.5"
    more = line.corrected("the same command with --lora moon", typed)
    assert more == "sdcli generate cat --lora ink:0.8 --lora sun --lora moon"


def test_a_choice_is_corrected_as_it_was_spelled(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "cat", "-m", "sd15", "--dtype", "fp16", "--as-if", "cpu")
    hint = done.err.split("try: ")[1].split()
    assert done.code == 2 and hint[:6] == ["sdcli", "plan", "cat", "-m", "sd15", "--dtype"] and "--pin" not in hint
    assert sdcli(capfd, *hint[1:]).code == 0


def test_an_option_eaten_behind_joined_switches_is_refused_too(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "cat", "-qs", "--json-lines", "--engine", "fake")
    assert done.code == 2 and "-s needs a value" in done.err


def test_a_hint_that_changes_nothing_or_is_a_sentence_stays_as_it_is() -> None:
    typed = ["generate", "cat", "--width", "992"]
    for hint in (
        "--width 992", "sdcli doctor", "the same command without --preset", "wait",
        "the same command with --debug shows where", "the same command with another --seed", "-o 'x",
    ):  # fmt: skip
        assert line.corrected(hint, typed) == hint


def test_a_schedule_that_the_model_cannot_take_is_answered_with_one_it_can(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "a cat", "--scheduler", "karras", "--sampler", "euler")
    hint = shlex.split(done.err.split("try: sdcli ")[1].splitlines()[0])
    assert done.code == 2 and sdcli(capfd, *hint).code == 0
