"""`sdcli inspect-unet` from outside: exit codes, one object on stdout, no torch, little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_files import lora, original, write

from sdcli.inspect import guess


def sdcli(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdcli", "inspect-unet", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        check=False,
        timeout=120,
    )


def test_the_screen_is_on_stdout_and_nothing_else_is_printed() -> None:
    done = sdcli("sd15")
    assert (done.returncode, done.stderr) == (0, "")
    assert "859,520,964 parameters" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_json_is_one_object_in_every_outcome(tmp_path: Path) -> None:
    hurt = dict(guess.expected("sd15"))
    del hurt["conv_in.bias"]
    damaged = write(tmp_path / "damaged.safetensors", original(hurt))
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a model at all, but long enough to be one")
    for words, code in (
        (["sd15"], 0),
        (["sd15", "--diff", "sdxl"], 0),
        (["sd99"], 3),
        (["sd15", "--at", "990x512"], 2),
        (["sd15", "--at", "wide"], 2),
        (["sd15", "--dtype", "int4"], 2),
        (["sd15", "--sort", "size"], 2),
        (["sd15", "--filter", "("], 2),
        (["sd15", "--by", "size"], 2),
        (["sd15", "--layers", "--depth", "1"], 2),
        ([], 2),
        ([str(garbage)], 9),
        ([str(damaged)], 9),
    ):
        done = sdcli(*words, "--json")
        assert done.returncode == code, words
        document = json.loads(done.stdout)
        assert done.stdout.count("\n") == 1
        if code == 9 and words == [str(damaged)]:  # what was recognised is still there
            assert document["missing"] == ["conv_in.bias"]
            assert document["error"]["code"] == 9
            assert document["totals"]["parameters"] == 859_520_964
        elif code:
            assert document["error"]["code"] == code
            assert document["error"]["hint"], words


def test_a_damaged_file_shows_what_it_has_and_exits_nine(tmp_path: Path) -> None:
    hurt = dict(guess.expected("sd15")) | {"conv_out.weight": (4, 320, 1, 1)}
    done = sdcli(str(write(tmp_path / "hurt.safetensors", hurt)))
    assert done.returncode == 9
    assert "UNet of Stable Diffusion 1.5" in done.stdout
    assert "conv_out.weight 4×320×1×1, expected 4×320×3×3" in done.stdout
    assert "error: hurt: 1 with the wrong shape" in done.stderr


def test_a_lora_as_model_is_shown_for_what_it_is(tmp_path: Path) -> None:
    done = sdcli(str(write(tmp_path / "l.safetensors", lora("sd15", 16))))
    assert done.returncode == 0
    assert "made for Stable Diffusion 1.5" in done.stdout


def test_tables_for_other_programs() -> None:
    csv = sdcli("sdxl", "--csv", "--by", "block").stdout.splitlines()
    assert csv[0].startswith("name,type,kind")
    assert csv[-1].startswith("conv_out,Conv2d,out")
    markdown = sdcli("sdxl", "--markdown", "--by", "kind").stdout
    assert markdown.startswith("| name | type |")
    assert sdcli("sdxl", "--csv", "--json").returncode == 2


def test_a_console_without_unicode_gets_plain_characters() -> None:
    done = sdcli("sd15", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "64x64" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_a_name_with_escape_codes_has_no_power() -> None:
    done = sdcli("\x1b[2J[/red]")
    assert done.returncode == 3
    assert "\x1b" not in done.stderr


def test_drawings_are_written_whole_or_not(tmp_path: Path) -> None:
    done = sdcli("sd15", "--svg", str(tmp_path / "u.svg"), "--html", str(tmp_path / "u.html"))
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"u.svg", "u.html"}
    refused = sdcli("sd15", "--svg", str(tmp_path / "no" / "u.svg"))
    assert refused.returncode == 7
    assert "could not write" in refused.stderr


MEASURED = """
import sys
from pathlib import Path
from sdcli.cli.main import run
try:
    run(["inspect-unet", sys.argv[1], "--json"])
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "rich"} & set(sys.modules)
    peak = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(peak[0], sorted(heavy), end.code, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count of peak memory")
def test_a_file_of_seven_gigabytes_takes_little_memory_and_no_torch(tmp_path: Path) -> None:
    tensors = original(guess.expected("sdxl")) | {"first_stage_model.decoder.conv_in.weight": (900_000, 1000)}
    path = write(tmp_path / "large.safetensors", tensors)
    assert path.stat().st_size > 6_900_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    kibibytes, heavy, code = done.stderr.split(maxsplit=1)[0], *done.stderr.strip().rsplit(maxsplit=1)
    assert int(kibibytes) < 80 * 1024
    assert "[]" in heavy
    assert code == "0"
    assert json.loads(done.stdout)["source"]["family"] == "sdxl"
