"""What people and programs see of a run: progress, summary, paths, JSON."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_samples import RUN, destination, job, plan, stream

from sdcli.events import Degraded, Denoised, Encoded, Event, Failed, Loaded, Memory, Planned, Saved, Step, Timed, Warned
from sdcli.live import clock_text
from sdcli.plan.plan import Plan
from sdcli.record import documents
from sdcli.record import report as reports
from sdcli.record.report import Folding, Report, fold
from sdcli.record.sinks.json_lines import JsonLines
from sdcli.record.sinks.paths import Paths
from sdcli.record.sinks.progress import Progress, State, bar_line
from sdcli.record.sinks.summary import asked, summary
from sdcli.record.sinks.watch import Sink, Watch
from sdcli.record.store import store
from sdcli.sizes import GIB
from sdcli.terminal import StdoutLost, cells


def watched(events: Iterator[Event], *sinks: Sink) -> Iterator[Event]:
    return Watch(*sinks)(events)


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


class Log(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]


def ticking(seconds: float = 1.0) -> Callable[[], float]:
    now = [0.0]

    def clock() -> float:
        now[0] += seconds
        return now[0]

    return clock


def run(folder: Path, of: Plan) -> list[Event]:
    events = list(store(stream(of), destination(folder)))
    if of.setup.device == "cpu":
        return events
    for place, event in enumerate(events):
        if isinstance(event, Step):
            events[place] = replace(event, device_bytes=2 * GIB, device_peak=2 * GIB)
        elif isinstance(event, Memory):
            events[place] = replace(event, device_peak=event.host_peak, reserved_peak=event.host_peak)
    return events


def report_of(events: list[Event]) -> Report:
    return fold(events, started="2026-11-03T14:25:01Z", run=RUN, seconds=7.8)


def shown(stream: io.StringIO, events: list[Event], columns: int = 80, **options: bool) -> str:
    progress = Progress(stream, clock=ticking(), columns=columns, **options)
    for event in events:
        progress(event)
    progress.finish(report_of(events))
    return stream.getvalue()


def frames(text: str) -> list[str]:
    """Every line that stood on the screen at some time, without colours."""
    return [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", text)) if line.strip()]


# --- watching


def test_watching_changes_nothing(tmp_path: Path) -> None:
    events = run(tmp_path, plan(images=2))
    one: list[Event] = []
    two: list[Event] = []
    assert list(watched(iter(events), one.append, two.append)) == events == one == two


def test_a_sink_sees_an_event_before_the_next_one_is_asked_for() -> None:
    seen: list[str] = []

    def source() -> Iterator[Event]:
        yield Warned(code="a", message="")
        seen.append("asked for more")
        yield Warned(code="b", message="")

    list(watched(source(), lambda event: seen.append(event.code)))  # type: ignore[union-attr]
    assert seen == ["a", "asked for more", "b"]


# --- a terminal


def test_on_a_terminal_one_line_moves_and_is_gone_at_the_end(tmp_path: Path) -> None:
    text = shown(Terminal(), run(tmp_path, plan()))
    assert next(line for line in frames(text) if "2/4" in line).split() == [
        "steps",
        "━" * 20 + "─" * 20,
        "2/4",
        "10.0/s",
        "0:00",
    ]
    last = text[text.rindex("4/4") :]
    assert "\x1b[2K" in last, "the line is erased"
    assert text.endswith("peak 2.00 GiB\n")


def test_on_a_gpu_memory_is_shown_beside_the_steps(tmp_path: Path) -> None:
    assert "2.0 GiB, max 2.0" in shown(Terminal(), run(tmp_path, plan(device="cuda:0")))


def test_the_cursor_is_never_left_hidden(tmp_path: Path) -> None:
    text = shown(Terminal(), run(tmp_path, plan(images=2)))
    for place in range(len(text)):
        if text.startswith("\x1b[?25l", place):
            assert text[place + 6 :].startswith("\x1b[?25h")


def test_no_colour_where_no_colour_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(
        r"\x1b\[[0-9;]*m", shown(Terminal(), run(tmp_path, plan())).replace("\x1b[2m", "").replace("\x1b[0m", "")
    )


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(Terminal(), run(tmp_path, plan()))


def test_the_live_line_is_gone_before_an_image_can_be_shown(tmp_path: Path) -> None:
    screen = Terminal()
    progress = Progress(screen, clock=ticking(), columns=80)
    for event in run(tmp_path, plan()):
        progress(event)
        if isinstance(event, Denoised):
            assert screen.getvalue().endswith("\x1b[2K")


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_every_line_fits_every_width(tmp_path: Path, columns: int) -> None:
    jobs = [job(n, prompt="一只猫 " * 40) for n in range(6)]
    for of in (plan(images=6, batch_size=4, device="cuda:0"), plan(jobs=jobs), plan()):
        events = [*run(tmp_path / f"{len(of.jobs)}{of.setup.device[:4]}{len(of.batches)}", of)]
        events.insert(3, Warned(code="x", message="a long remark about something " * 5))
        for screen in (Terminal(), Log()):
            for line in frames(shown(screen, events, columns)):
                assert cells(line) <= columns
    if columns >= 40:
        assert "denoise        1.50      2.00 GiB" in shown(Log(), run(tmp_path / "n", plan(device="cuda:0")), 40)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, 10**5),
    st.integers(1, 10**4),
    st.floats(0, 10**5),
    st.integers(1, 300),
    st.booleans(),
    st.integers(1, 500),
)
def test_the_bar_always_fits_and_always_says_where_it_is(
    total: int, images: int, seconds: float, width: int, gpu: bool, done: int
) -> None:
    state = State(
        step=min(done, total), of=total, done=min(done, total), total=total, seconds=seconds, images=images,
        first=1, last=1, device_bytes=GIB if gpu else None, device_peak=GIB if gpu else None,
    )  # fmt: skip
    line = "".join(bar_line(state, width))
    assert cells(line) <= width
    assert width < 40 or f"{min(done, total)}/{total}" in line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (760, "12:40"), (3723, "1:02:03"), (1e9, "99:59:59")]
)
def test_time_left_is_read_like_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


# --- elsewhere


def test_off_a_terminal_there_are_few_lines_and_no_codes(tmp_path: Path) -> None:
    of = plan(jobs=[job(n, steps=50, unet_calls=50) for n in range(10)])
    text = shown(Log(), run(tmp_path, of))
    steps = [line for line in text.splitlines() if "step" in line and "/50" in line]
    assert "\x1b" not in text
    assert "image 1/10 step 1/50" in steps[0] and "image 10/10 step 50/50" in steps[-1]
    assert 3 <= len(steps) <= 12


def test_between_two_lines_lie_five_seconds_and_a_tenth_of_the_way(tmp_path: Path) -> None:
    of = plan(jobs=[job(steps=100, unet_calls=100)])
    events = run(tmp_path, of)

    def steps(seconds: float) -> list[int]:
        log = Log()
        progress = Progress(log, clock=ticking(seconds), columns=80)
        for event in events:
            progress(event)
        return [int(step) for step in re.findall(r"step (\d+)/100", log.getvalue())]

    assert steps(0.01) == [1, 100]
    assert steps(1.0) == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert steps(100.0) == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert steps(0.25) == [1, 21, 41, 61, 81, 100]


def test_quiet_is_silence(tmp_path: Path) -> None:
    events = [*run(tmp_path, plan()), Warned(code="x", message="y")]
    assert shown(Terminal(), events, quiet=True) == ""


def test_what_will_be_drawn_is_said_first(tmp_path: Path) -> None:
    first = shown(Log(), run(tmp_path, plan())).splitlines()[0]
    assert first == "a cat · 16×16 · 4 steps DPM++ 2M Karras · guidance 7.0 · seed 42"


@pytest.mark.parametrize(
    ("seeds", "said"),
    [((5, 5), "seed 5"), ((1, 9), "seeds 1, 9"), ((1, 2, 3), "seeds 1 to 3"), ((9, 3, 4, 1, 2), "5 seeds")],
)
def test_seeds_are_shown_briefly(seeds: tuple[int, ...], said: str) -> None:
    jobs = [job(n, seed=seed) for n, seed in enumerate(seeds)]
    assert asked(jobs, 200)[0].endswith(f"{said}")


def test_differing_prompts_and_sizes_are_counted() -> None:
    jobs = [job(0), job(1, prompt="a dog", width=32, steps=9)]
    assert asked(jobs, 80) == ["2 prompts · 2 images · 2 sizes · seeds 42, 43"]


def test_warnings_falls_and_failures_are_said_as_they_happen() -> None:
    fallback = Degraded(
        batch=0, phase="decode", step=None, before={"vae": "whole"}, after={"vae": "tile-512"}, because="out of memory",
        changes_pixels=True,
    )  # fmt: skip
    failed = Failed(batch=0, index=0, error={"message": "its pixels are not finite"})
    text = shown(Log(), [Planned(plan=plan()), Warned(code="x", message="look here"), fallback, failed])
    assert text.splitlines()[1:] == [
        "note: look here",
        "note: out of memory in decode: vae whole → tile-512, pixels move slightly (out",
        "      of memory)",
        "image 1 failed: its pixels are not finite",
    ]


def test_compiling_is_announced_once_and_what_it_took_or_why_it_failed_is_said(tmp_path: Path) -> None:
    of = plan(images=2)
    of = replace(of, setup=replace(of.setup, execution="compile"))
    events = run(tmp_path, of)
    first = next(place for place, event in enumerate(events) if isinstance(event, Step))
    events[first:first] = [Timed(phase="compile", seconds=42.0)]
    told = shown(Log(), events)
    assert told.count("  compile  the UNet's blocks; the first time takes a minute or more\n") == 1
    assert "load 1.9 s · compile 42 s · " in told
    failed = Degraded(
        batch=0, phase="compile", step=None, before={"execution": "compile"}, after={"execution": "packed"},
        because="no Python.h", changes_pixels=True,
    )  # fmt: skip
    said = "compiling failed: execution compile → packed, pixels move slightly"
    assert f"note: {said} (no\n      Python.h)" in shown(Log(), [Planned(plan=plan()), failed])
    assert summary(report_of([*run(tmp_path / "again", plan()), failed]))[-1] == said


# --- the summary


def test_one_image_is_summed_up_in_a_line(tmp_path: Path) -> None:
    assert summary(report_of(run(tmp_path, plan()))) == [
        "load 1.9 s · 4 steps of 100 ms · decode 0.1 s · 7.8 s in all · peak 2.00 GiB"
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_fallbacks_are_listed_in_the_last_block(tmp_path: Path, device: str) -> None:
    fallback = Degraded(
        batch=0, phase="denoise", step=2, before={"placement": "resident"}, after={"placement": "group-offload"},
        because="CUDA out of memory", changes_pixels=False,
    )  # fmt: skip
    lines = summary(report_of([*run(tmp_path, plan(device=device)), fallback]))
    assert [line.strip() for line in lines if "out of memory" in line] == [
        "out of memory in step 3: placement resident → group-offload, same pixels"
    ]


def test_on_a_gpu_the_predicted_peaks_are_beside_the_measured_ones(tmp_path: Path) -> None:
    report = report_of(run(tmp_path, plan(device="cuda:0")))
    lines = summary(report, where=Path("sdcli-images/runs/x/report.json"))
    lines = [re.sub(r"save     0\.\d\d s", "save     0.01 s", line) for line in lines]
    assert lines == [
        "",
        "  import   3.1 s                     peak GPU memory   predicted   measured",
        "  load     1.9 s   60 B              denoise                1.50       2.00 GiB",
        "  encode   0.03 s                    decode                 2.00       2.00 GiB",
        "  steps    0.40 s  4 × 100 ms        host RAM               1.00       2.00 GiB",
        "  decode   0.14 s",
        "  save     0.01 s",
        "  total    7.8 s   start to file",
        "  report   sdcli-images/runs/x/report.json",
    ]


def test_with_v_a_cpu_has_the_table_too(tmp_path: Path) -> None:
    lines = summary(report_of(run(tmp_path, plan())), verbose=True)
    assert any("peak memory" in line and "predicted" in line for line in lines)
    assert all("GPU" not in line and "host RAM" not in line for line in lines)


def test_where_nothing_was_drawn_nothing_is_summed_up() -> None:
    assert summary(report_of([Planned(plan=plan())])) == []
    assert summary(report_of([])) == []


# --- hostile surroundings


def test_foreign_text_has_no_power_over_the_terminal(tmp_path: Path) -> None:
    nasty = "\x1b]0;owned\x07 [red]x[/red] [/] :smile: \x9b31m \u202e \r\n"
    of = plan(jobs=[job(prompt=nasty)])
    events = run(tmp_path, of)
    events[2:2] = [
        Warned(code="x", message=nasty), Failed(batch=0, index=0, error={"message": nasty}),
        Loaded(component=nasty, bytes=1, seconds=0.1),
        Degraded(batch=0, phase="x", step=None, before={nasty: nasty}, after={nasty: nasty}, because=nasty,
                 changes_pixels=False),
    ]  # fmt: skip
    for screen in (Terminal(), Log()):
        text = shown(screen, events)
        assert "[red]x[/red] [/] :smile:" in text
        rest = ESCAPE.sub("", text)
        assert not re.search(r"[\x1b\x07\x9b\u202e]", rest)
    assert "\x1b" not in text


def test_a_console_that_knows_only_ascii_gets_ascii(tmp_path: Path) -> None:
    class Old(Terminal):
        encoding = "ascii"  # type: ignore[assignment]

        def write(self, text: str) -> int:
            text.encode("ascii")
            return super().write(text)

    of = plan(jobs=[job(prompt="一只猫")])
    text = shown(Old(), run(tmp_path, of))
    assert "==" in text and "16x16" in text


def test_a_closed_pipe_does_not_stop_a_run(tmp_path: Path) -> None:
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    class ClosedLog(Closed):
        def isatty(self) -> bool:
            return False

    for screen in (Closed(), ClosedLog()):
        progress = Progress(screen, clock=ticking(), columns=80)
        events = list(watched(store(stream(plan()), destination(tmp_path / type(screen).__name__)), progress))
        progress.finish(report_of(events))
        assert any(isinstance(event, Saved) for event in events)
    gone = Terminal()
    gone.close()
    progress = Progress(gone, clock=ticking(), columns=80)
    for event in events:
        progress(event)
    progress.finish(report_of(events))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_sink_that_fails_is_reported_once_and_the_run_continues(tmp_path: Path, failing: int) -> None:
    """Whichever place it has among them; the others see every event, and that it is gone."""
    folding = Folding(started="", run=RUN, clock=lambda: 1.0)

    def broken(event: Event) -> None:
        if isinstance(event, Step):
            raise RuntimeError("no room for a frame")

    sinks = [folding, broken] if failing else [broken, folding]
    records = tmp_path / "runs" / RUN
    events = list(watched(store(stream(plan(images=3)), destination(tmp_path)), *sinks))
    assert sum(isinstance(event, Saved) for event in events) == 3
    warnings = [event for event in events if isinstance(event, Warned)]
    assert [(one.code, one.message) for one in warnings] == [
        ("sink-failed", "broken stopped: RuntimeError: no room for a frame")
    ]
    assert [one.code for one in folding.report().warnings] == ["sink-failed"]
    end = json.loads((records / "run.jsonl").read_text().splitlines()[-1])
    assert (end["type"], end["status"]) == ("end", "done")


def test_results_that_cannot_be_written_do_not_stop_the_run_and_are_not_forgotten(tmp_path: Path) -> None:
    """A full disk behind stdout: every image is drawn and saved, and the run knows."""

    def full(_: bytes) -> None:
        raise StdoutLost("the disk is full")

    folding = Folding(started="", run=RUN, clock=lambda: 1.0)
    watching = Watch(folding, JsonLines(full, folding, tmp_path), Paths(full, "/"))
    events = list(watching(store(stream(plan(images=2)), destination(tmp_path))))
    assert sum(isinstance(event, Saved) for event in events) == 2
    assert watching.lost is not None and watching.lost.code == 7


# --- for programs


def test_json_lines_has_one_object_for_each_image_as_it_is_saved(tmp_path: Path) -> None:
    out = io.BytesIO()
    folding = Folding(started="", run=RUN, clock=lambda: 1.0)
    stream_of = watched(
        store(stream(plan(images=3)), destination(tmp_path)), folding, JsonLines(out.write, folding, tmp_path)
    )
    count = 0
    for event in stream_of:
        if isinstance(event, Saved):
            count += 1
            lines = out.getvalue().splitlines()
            assert len(lines) == count and json.loads(lines[-1])["path"] == event.path
    entries = [json.loads(line) for line in out.getvalue().splitlines()]
    assert entries == reports.to_json(folding.report(), tmp_path)["images"]


def test_json_is_one_object_on_one_line(tmp_path: Path) -> None:
    events = run(tmp_path, plan(jobs=[job(prompt="a\nb 猫 \udc80")]))
    text = b"".join(documents.pieces(reports.to_json(report_of(events), tmp_path))).decode("utf-8")
    assert "\n" not in text
    assert json.loads(text) == reports.to_json(report_of(events), tmp_path)


def test_paths_are_short_below_the_current_folder(tmp_path: Path) -> None:
    of = plan(images=2)
    for here, expected in (
        (tmp_path.parent, f"{tmp_path.name}/0001-a-cat-42.png"),
        (Path("/"), str(tmp_path)[1:] + "/0001"),
    ):
        out = io.BytesIO()
        folder = tmp_path if here != Path("/") else tmp_path / "other"
        list(watched(store(stream(of), destination(folder)), Paths(out.write, str(here))))
        assert (
            out.getvalue()
            .decode()
            .startswith(expected.replace("/0001", "/other/0001") if here == Path("/") else expected)
        )


def test_a_batch_of_prompts_no_plan_lists_still_has_progress() -> None:
    events: list[Event] = [Planned(plan=plan())]
    for batch in range(4):
        events.append(Encoded(batch=batch, tokens=(3,), seconds=0.1))
        events += [Step(batch=batch, step=n, of=4, seconds=2.5) for n in range(1, 5)]
        events.append(Denoised(batch=batch, seconds=10.0))
    text = shown(Log(), events)
    assert "image 4/4 step 4/4" in text and "2.5 s each" in text


def test_importing_the_room_loads_neither_rich_nor_pillow_nor_numpy() -> None:
    script = (
        "import sys, sdcli.record.sinks.progress, sdcli.record.store, sdcli.record.report, sdcli.record.metadata.read;"
        "print([m for m in ('rich', 'PIL', 'numpy', 'torch', 'diffusers', 'typer') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() == "[]"
