"""What the documents and the hints tell people to type exists: every command, every flag, every pin."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted((ROOT / "sdcli").rglob("*.py"))

HOLE = "\N{WHITE SQUARE}"  # where an f-string puts a value
FLAG = re.compile(r"^--?[A-Za-z][A-Za-z0-9-]*$")
OF_SCRIPTS = {"--system", "--fix"}  # flags of scripts/test and scripts/check


@functools.cache
def commands() -> dict[str, set[str]]:
    """Every command as typed ("config show") with its flags."""
    import typer

    from sdcli.cli.app import build

    found: dict[str, set[str]] = {}

    def walk(command: Any, name: str) -> None:
        found[name] = {"--help", "-h"}
        for parameter in command.params:
            found[name].update(parameter.opts, parameter.secondary_opts)
        for inner, child in getattr(command, "commands", {}).items():
            walk(child, f"{name} {inner}".strip())

    walk(typer.main.get_command(build()), "")
    return found


@functools.cache
def pins() -> dict[str, tuple[str, ...]]:
    from sdcli.plan.techniques import TECHNIQUES

    return {technique.flag: tuple(technique.choices) for technique in TECHNIQUES}


def wrong_with(line: str) -> str | None:
    """What does not exist in a line to paste, or None. Remarks after two spaces are not part of it."""
    typed = re.split(r"\s{2,}[(#]|\s#\s|\s\|\s|\s&&\s|\s>\s|\s+⟵", line)[0].replace("`", "")
    try:
        words = shlex.split(typed)
    except ValueError:
        return f"quotes do not pair: {line}"
    while words and (words[0] == "$" or re.match(r"^[A-Z_]+=", words[0])):
        words = words[1:]
    if words and (words[0] == "sdcli" or words[0].endswith("scripts/sdcli")):
        return _wrong_words(words[1:], line)
    return _wrong_flags(words, set().union(*commands().values()), line) if words and FLAG.match(words[0]) else None


def _wrong_words(words: list[str], line: str) -> str | None:
    known = commands()
    name = ""
    while words and f"{name} {words[0]}".strip() in known:
        name, words = f"{name} {words[0]}".strip(), words[1:]
    first = words[0] if words else ""
    if not name and first and not first.startswith("-") and HOLE not in first and first not in ("…", "..."):
        return f"no command {first!r}: {line}"
    flags = known[name] if name else set().union(*known.values())
    return _wrong_flags(words, flags, line)


def _wrong_flags(words: list[str], flags: set[str], line: str) -> str | None:
    for place, word in enumerate(words):
        flag = word.split("=")[0]
        if FLAG.match(flag) and flag not in flags:
            return f"no flag {flag}: {line}"
        if flag == "--pin" and place + 1 < len(words) and HOLE not in words[place + 1]:
            slot, _, choice = words[place + 1].partition("=")
            if slot.islower() and (slot not in pins() or (choice and choice not in pins()[slot])):
                return f"no pin {words[place + 1]}: {line}"
    return None


def lines_to_paste(text: str) -> Iterator[str]:
    """Lines of code blocks, and code within sentences."""
    inside = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside:
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def of_sdcli(lines: Iterator[str]) -> list[str]:
    start = re.compile(r"^(\$ )?([A-Z_]+=\S* )*(\S*scripts/)?sdcli( |$)|^--?[A-Za-z]")
    return [line for line in lines if start.match(line) and line.split()[0] not in OF_SCRIPTS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_flags_of_the_documents_exist(document: Path) -> None:
    lines = of_sdcli(lines_to_paste(document.read_text(encoding="utf-8")))
    wrong = [problem for line in lines if (problem := wrong_with(line))]
    assert not wrong, "\n".join(wrong)


def test_the_check_of_lines_finds_what_does_not_exist() -> None:
    assert wrong_with('sdcli generate "a cat" --steps 20') is None
    assert wrong_with('$ scripts/sdcli plan "a cat" --pin placement=group-offload   # a remark') is None
    assert wrong_with("sdcli help exit-codes") is None
    assert wrong_with("sdcli generte 'a cat'") == "no command 'generte': sdcli generte 'a cat'"
    assert wrong_with("sdcli generate --stepz 20") == "no flag --stepz: sdcli generate --stepz 20"
    assert wrong_with("sdcli samplers --steps 20") == "no flag --steps: sdcli samplers --steps 20"
    assert wrong_with("--pin placement=moon") == "no pin placement=moon: --pin placement=moon"
    assert wrong_with("--frobnicate") == "no flag --frobnicate: --frobnicate"


def text_of(node: ast.AST) -> str:
    """A string as far as it stands in the source; values of an f-string are holes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return ""


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string below, docstrings apart, an f-string as one."""
    for child in ast.iter_child_nodes(node):
        if text_of(child):
            yield child.lineno, text_of(child)  # type: ignore[attr-defined]
        elif not isinstance(child, ast.Expr) or not text_of(child.value):
            yield from strings(child)


SAME = re.compile(r"^the same command with(out)? ")  # and then what to change in it


def hints_given(path: Path) -> Iterator[tuple[int, str]]:
    """Values of `hint=`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            found = [(node.value.lineno, text_of(node.value))] if text_of(node.value) else strings(node)
            plain = ((line, SAME.sub("", text)) for line, text in found)
            yield from ((line, text) for line, text in plain if text.startswith(("sdcli ", "scripts/sdcli ", "-")))


def hints(path: Path) -> Iterator[tuple[int, str]]:
    """These, and commands that other strings show in backticks or on a line of their own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from hints_given(path)
    for line, text in strings(tree):
        for shown in re.findall(r"`((?:sdcli |--)[^`]+)`", text) + re.findall(r"^ {2,}(sdcli .+)$", text, re.MULTILINE):
            yield line, shown


def test_no_hint_is_about_the_image_of_somebody_else() -> None:
    """A hint names what to change; the line to paste is made from what was typed."""
    drawing = re.compile(r"sdcli (generate|plan) ")
    literal = [(path.name, line, hint) for path in SOURCES for line, hint in hints_given(path) if drawing.match(hint)]
    assert literal == []


def test_commands_and_flags_of_the_hints_exist() -> None:
    found = [(path.relative_to(ROOT), line, hint) for path in SOURCES for line, hint in hints(path)]
    assert len(found) > 150
    wrong = [f"{path}:{line} {problem}" for path, line, hint in found if (problem := wrong_with(hint))]
    assert not wrong, "\n".join(wrong)


WRONG_NAME = re.compile(r"(pip3?|pipx|uv|uvx)\s+((run|tool|add|install|pip|--?\S+)\s+)*sdcli\b(?!/)")


def test_no_text_sends_people_to_the_sdcli_of_someone_else() -> None:
    """The name belongs to another project on the package index; this one is installed from its folder."""
    assert WRONG_NAME.search("pip install " + "sdcli") and WRONG_NAME.search("uvx " + "sdcli plan")
    assert WRONG_NAME.search("uv tool install --force " + "sdcli") and not WRONG_NAME.search("pipx install .")
    scripts = [path for path in (ROOT / "scripts").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    texts = [*DOCUMENTS, *SOURCES, *scripts, ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    assert [path for path in texts if WRONG_NAME.search(path.read_text(encoding="utf-8"))] == []


def runnable() -> list[str]:
    """Commands of the documents that need neither model nor network, so that they can be run as they stand. Those of
    docs/models.md have a test of their own, with models."""
    lines = [
        line.removeprefix("$ ").replace("scripts/sdcli", "sdcli")
        for document in DOCUMENTS
        if document.name != "models.md"
        for line in of_sdcli(lines_to_paste(document.read_text(encoding="utf-8")))
    ]
    safe = re.compile(r"^sdcli (plan .*--as-if|samplers|help |inspect-unet sd(15|xl)|generate .*--engine fake|--)")
    unsafe = re.compile(r"FILE|PATH|--measure|[…⟵<>|]|\.safetensors|--prompts")
    return sorted({line for line in lines if safe.match(line) and not unsafe.search(line)})


def test_examples_of_the_documents_run(tmp_path: Path, subtests: Any) -> None:
    lines = runnable()
    assert len(lines) >= 4
    for line in lines:
        with subtests.test(line=line):
            words = shlex.split(re.split(r"\s{2,}[(#]|\s#\s", line)[0])[1:]
            done = subprocess.run(
                [sys.executable, "-P", "-m", "sdcli", *words],
                cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                encoding="utf-8",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr


def blocks(language: str) -> list[tuple[str, str]]:
    """Code blocks of the documents, each with the name of its file."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(path.name, found) for path in DOCUMENTS for found in fence.findall(path.read_text(encoding="utf-8"))]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_shell_in_the_documents_is_shell() -> None:
    found = blocks("sh")
    assert len(found) > 10
    for name, text in found:
        read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (name, read.returncode, read.stderr) == (name, 0, "")


@pytest.mark.skipif(not shutil.which("sh"), reason="needs a shell")
def test_a_pod_of_the_documents_job_draws_its_shard_and_goes_on_with_it(tmp_path: Path) -> None:
    (manifest,) = [yaml.safe_load(text) for name, text in blocks("yaml") if name == "scaling.md"]
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    script = container["args"][0].replace("/data", str(tmp_path))
    (tmp_path / "sdcli").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "sdcli").chmod(0o755)
    place = {"JOB_COMPLETION_INDEX": "6", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    place |= {one["name"]: one["value"] for one in container["env"]}

    def said() -> str:
        return subprocess.run([*container["command"], script], env=place, capture_output=True, text=True).stdout

    assert said().startswith("generate ") and said().endswith(f"--shard 7/{manifest['spec']['completions']}\n")
    run = tmp_path / "images" / "runs" / "20261103-142501-3f2a0000-7-of-8"
    run.mkdir(parents=True)
    assert said() == f"resume {run}\n"


def test_the_speeds_in_the_readme_are_the_recorded_ones() -> None:
    record = (ROOT / "docs/benchmarks/cpu.md").read_text(encoding="utf-8")
    recorded = _rows(record[record.index("## SD 1.5, 512×512") :])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = _rows(readme[readme.index("## How fast it is") : readme.index("## Where images go")])
    columns = told.pop("")
    names = {"start to file": "from start to file", "peak, GB": "peak GB"}
    places = [recorded[""].index(names.get(column, column)) for column in columns]
    assert len(told) == 4
    for name, figures in told.items():
        assert figures == [recorded[name][place].split(" ")[0] for place in places], name


def _rows(text: str) -> dict[str, list[str]]:
    """A Markdown table's cells by its first column."""
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("---")}
