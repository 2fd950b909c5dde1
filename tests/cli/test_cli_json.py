"""`sdcli help json`: a schema for every document, which what sdcli prints and writes conforms to."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_run import ROOT, sdcli
from fake_hub import FakeHub
from json_valid import schema_named, wrong_in

sys.path.insert(0, str(ROOT / "tests" / "record"))
sys.path.insert(0, str(ROOT / "tests" / "inspect"))
from inspect_files import lora, write
from record_samples import destination, plan, stream

from scripts import make_checkpoint
from sdcli import schema
from sdcli.cli.json_documents import DOCUMENTS
from sdcli.errors import ImagesFailed
from sdcli.events import Decoded, Degraded, Event, Failed, Planned, Queued
from sdcli.plan.plan import Plan
from sdcli.record import runs
from sdcli.record.store import store
from sdcli.request.request import Job

FAKE = ("--engine", "fake", "--size", "64x64", "-s", "2")
INTERNAL = {"sdcli.state", "sdcli.listing", "sdcli.step"}  # what sdcli remembers for itself

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def conforms(name: str, data: Any) -> None:
    assert wrong_in(name, data) == []


def public(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a journal, without where this machine has its files."""
    if line["type"] == "run":
        return line | {"plan": runs.plan_json(schema.from_json(Plan, line["plan"], whole=True))}
    if line["type"] == "queued":
        return line | {"jobs": [schema.to_json(schema.from_json(Job, job, whole=True)) for job in line["jobs"]]}
    return line


def test_every_document_has_a_schema_and_every_schema_a_document() -> None:
    numbered = r'"(sdcli\.[a-z0-9-]+)(?:/\d+"|", \d+\n)'
    written = {
        name
        for path in (ROOT / "sdcli").rglob("*.py")
        if path.name != "json_documents.py"
        for name in re.findall(numbered, path.read_text(encoding="utf-8"))
    }
    listed = {document.schema.partition("/")[0] for document in DOCUMENTS.values() if document.schema}
    assert written - INTERNAL == listed
    assert all(document.schema in ("", f"sdcli.{name}/1") for name, document in DOCUMENTS.items())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_is_printed_whole(name: str, capfd: Capture) -> None:
    done = sdcli(capfd, "help", "json", name)
    printed = json.loads(done.out)
    assert done.code == 0 and printed == schema_named(name)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    references = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', done.out))
    assert references == set(printed.get("$defs", {}))
    if DOCUMENTS[name].schema:
        assert sdcli(capfd, "help", "json", DOCUMENTS[name].schema).out == done.out


def test_the_list_names_each_and_another_name_is_refused(capfd: Capture) -> None:
    listed = sdcli(capfd, "help", "json").out
    assert re.findall(r"^  ([a-z-]+)  ", listed, re.MULTILINE) == list(DOCUMENTS)
    done = sdcli(capfd, "help", "json", "plans")
    assert done.code == 2
    assert done.err.startswith('error: no JSON document "plans"; documents: plan, report,')
    assert "try: sdcli help json\n" in done.err


def test_the_page_has_the_same_table() -> None:
    rows = [
        f"| `{name}` | {f'`{one.schema}`' if one.schema else ''} | {one.words} | {sources(one.source)} |"
        for name, one in DOCUMENTS.items()
    ]
    table = "\n".join(["| name | `schema` | what it is | from |", "| --- | --- | --- | --- |", *rows])
    assert table in (ROOT / "docs" / "json.md").read_text(encoding="utf-8")


def sources(text: str) -> str:
    """What can be typed and what is a file, as code."""
    return ", ".join(f"`{one}`" if re.match(r"sdcli |--|\w+\.json", one) else one for one in text.split(", "))


# --- what is printed and written


def test_plans_conform_whether_they_fit_or_not(capfd: Capture) -> None:
    for machine in ("cuda:8GiB,ram:32", "cuda:1GiB,ram:2"):
        conforms("plan", sdcli(capfd, "plan", "a cat", "-m", "sdxl", "--as-if", machine, "--json").json)


def test_a_run_conforms_on_stdout_in_its_files_and_in_its_image(here: Path, capfd: Capture) -> None:
    from PIL import Image

    report = sdcli(capfd, "generate", "a cat", "-n", "2", *FAKE, "--json").json
    conforms("report", report)
    records = Path(report["folder"]) / "runs" / report["run"]
    conforms("report", json.loads((records / "report.json").read_text("utf-8")))
    for line in (records / "run.jsonl").read_text("utf-8").splitlines():
        conforms("run", public(json.loads(line)))
    with Image.open(report["images"][0]["path"]) as image:
        conforms("image", json.loads(image.text["sdcli"]))  # type: ignore[attr-defined]
    for line in sdcli(capfd, "generate", "a cat", "-n", "2", *FAKE, "--json-lines").out.splitlines():
        conforms("json-lines", json.loads(line))


def test_every_kind_of_line_of_a_journal_conforms(here: Path) -> None:
    of = plan(2)

    def troubled() -> Iterator[Event]:
        fallback = Degraded(
            batch=0, phase="denoise", step=1, before={"vae": "whole"}, after={"vae": "tiled"}, because="memory ran out",
            changes_pixels=True,
        )  # fmt: skip
        for event in stream(of):
            if isinstance(event, Decoded) and event.index == 1:
                yield Failed(batch=1, index=1, error=ImagesFailed("not finite").to_json())
            else:
                yield event
            if isinstance(event, Planned):
                yield Queued(batch=2, jobs=(replace(of.jobs[0], index=2),))
            if isinstance(event, Decoded) and event.index == 0:
                yield fallback

    to = destination(here)
    list(store(troubled(), to))
    journal = runs.reopen(runs.read(to.records), {"torch": "2.13.0"})
    journal.close()
    lines = [json.loads(line) for line in (to.records / runs.JOURNAL).read_text("utf-8").splitlines()]
    assert {line["type"] for line in lines} == {
        "run", "queued", "intent", "done", "failed", "degraded", "end", "resumed",
    }  # fmt: skip
    for line in lines:
        conforms("run", public(line))


def test_bench_and_its_comparison_conform(here: Path, capfd: Capture) -> None:
    words = (*FAKE, "-m", "sd15", "--quick", "--max-time", "1", "--save", "a.json")
    done = sdcli(capfd, "bench", *words, "--json")
    conforms("bench", done.json)
    conforms("bench", json.loads((here / "a.json").read_text("utf-8")))
    conforms("bench-compare", sdcli(capfd, "bench", "compare", "a.json", "a.json", "--json").json)


def test_enlarged_images_conform(here: Path, capfd: Capture) -> None:
    from PIL import Image

    make_checkpoint.write_upscaler(here / "x4.safetensors", tiny=True)
    Image.new("RGB", (16, 16), "red").save("photo.png")
    words = ("upscale", "photo.png", "--upscaler", "x4.safetensors", "--json")
    conforms("upscale", sdcli(capfd, *words).json)


def test_what_is_seen_of_a_unet_conforms(here: Path, capfd: Capture) -> None:
    file = write(here / "lora.safetensors", lora("sd15", 4))
    for name, words in {
        "unet": ("sd15",), "unet-diff": ("sd15", "--diff", "sd21"), "lora": ("sd15", "--lora", str(file)),
    }.items():  # fmt: skip
        conforms(name, sdcli(capfd, "inspect-unet", *words, "--json").json)


def test_models_conform_listed_checked_pulled_and_removed(server: FakeHub, here: Path, capfd: Capture) -> None:
    conforms("pull", sdcli(capfd, "pull", "someone/tiny", "--json").json)
    conforms("models", sdcli(capfd, "models", "--json").json)
    conforms("models-check", sdcli(capfd, "models", "check", "someone/tiny", "--json").json)
    conforms("models-rm", sdcli(capfd, "models", "rm", "someone/tiny", "--json").json)


@pytest.mark.parametrize("name", ["samplers", "presets", "config", "doctor"])
def test_small_answers_conform(name: str, capfd: Capture) -> None:
    conforms(name, sdcli(capfd, *{"config": ("config", "show")}.get(name, (name,)), "--json").json)


def test_runs_and_comparisons_conform(here: Path, capfd: Capture) -> None:
    sdcli(capfd, "generate", "a cat", "-n", "2", "-m", "builtin", "-s", "1", "--no-show", "-o", "out")
    first, second = map(str, sorted((here / "out").glob("*.png")))
    conforms("runs", sdcli(capfd, "runs", "out", "--json").json)
    conforms("diff", sdcli(capfd, "diff", first, second, "--json").json)
    conforms("verify", sdcli(capfd, "verify", first, "-q", "--json").json)


def test_errors_conform(capfd: Capture) -> None:
    conforms("error", sdcli(capfd, "generate", "a cat", "--stepz", "9", "--json").json)
    conforms("error", sdcli(capfd, "plan", "a cat", "-m", "no/such:model", "--json").json)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a key is gone": lambda data: data["setup"].pop("vae"),
    "a key is new": lambda data: data["setup"].update(vae_tile=1),
    "a number is text": lambda data: data["jobs"][0].update(steps="9"),
    "a number is no whole one": lambda data: data["budget"].update(device=0.5),
    "a number is a truth": lambda data: data["jobs"][0].update(seed=True),
    "text is null": lambda data: data["model"].update(name=None),
    "a list is an object": lambda data: data.update(jobs={}),
    "another schema": lambda data: data.update(schema="sdcli.plan/2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_document_that_is_another_does_not_conform(change: str, capfd: Capture) -> None:
    data = sdcli(capfd, "plan", "a cat", "-m", "sd15", "--as-if", "cuda:8GiB", "--json").json
    changed = copy.deepcopy(data)
    CHANGES[change](changed)
    assert wrong_in("plan", data) == [] and wrong_in("plan", changed) != []
