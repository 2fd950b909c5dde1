"""`sdcli bench compare`: two results, or two programs measured here in turn: faster, slower or inconclusive."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli import reading, schema
from sdcli.bench import comparison
from sdcli.bench import result as results
from sdcli.bench.process import EXIT_SECONDS
from sdcli.bench.result import BenchResult
from sdcli.cli.answer import Answered, print_json
from sdcli.cli.bench_options import COMPARING, DRAWING, RANDOM, whole_number
from sdcli.errors import BadFile, Interrupted, SdcliError, Slower, Stop, Terminated, Usage, stopped_by
from sdcli.request.options import SCREEN, flag_of
from sdcli.terminal import say, show, tell


def compare(typed: dict[str, Any]) -> None:
    threshold = _percent(str(typed.get("fail_if_slower", f"{comparison.THRESHOLD * 100:g}%")))
    words, runs = tuple(typed.get("words", ())), tuple(typed.get("run", ()))
    error: SdcliError | None = None
    if runs:
        if len(runs) != 2 or words:
            raise Usage("--run must be given twice: the baseline, then the candidate", hint=comparison.ADVICE)
        baseline, candidate, error = _measured_here(typed, runs)
    elif len(words) == 2:
        baseline, candidate = (results.read(Path(word)) for word in words)
    else:
        raise Usage("compare takes two results", hint="sdcli bench compare old.json new.json")
    compared = comparison.comparison(baseline, candidate, threshold, here=bool(runs))
    if error is None and compared.failed:
        worst = max(row.ratio.value for row in compared.rows if row.verdict == "slower")
        error = Slower(
            f"slower by {(worst - 1) * 100:.1f} %, more than the {threshold * 100:g} % allowed", hint=comparison.ADVICE
        )
    if typed.get("json"):
        print_json(schema.to_json(replace(compared, error=error.to_json() if error else None)))
        raise Answered(error.code if error else 0)
    for line in comparison.lines(compared):
        tell(line)
    if error is not None:
        raise error


def _percent(text: str) -> float:
    number = text.strip().removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,3}(\.\d{1,6})?", number, re.ASCII):
        raise Usage(
            f'--fail-if-slower: "{show(text, 40)}" is not a percentage',
            hint="--fail-if-slower 3%",
        )
    return float(number) / 100


def _measured_here(
    typed: Mapping[str, Any], runs: tuple[str, ...]
) -> tuple[BenchResult, BenchResult, Interrupted | Terminated | None]:
    """Both programs in turn, one process of each per round, so that whatever the machine does affects both. Interrupted
    after a whole round, the rounds so far are compared."""
    rounds = whole_number(typed, "processes", "--processes", 5)
    flags = list(_passed_on(typed))
    measured: tuple[list[BenchResult], list[BenchResult]] = ([], [])
    error: Interrupted | Terminated | None = None
    try:
        for number in range(rounds):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                if not typed.get("quiet"):
                    say(f"round {number + 1} of {rounds}: {show(runs[side], 100)}")
                measured[side].append(_run_other(runs[side], flags))
    except (KeyboardInterrupt, Stop) as stop:
        error = stopped_by(stop)
    except (Interrupted, Terminated) as ended:  # the other program was interrupted
        error = ended
    whole = min(map(len, measured))
    if error is not None and not whole:
        raise error
    return comparison.merged(measured[0][:whole]), comparison.merged(measured[1][:whole]), error


def _passed_on(typed: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--quick", "--json")
    for option in (*DRAWING, RANDOM, *COMPARING[-1:], *(o for o in SCREEN if o.field == "engine")):
        value = typed.get(option.field)
        if value is None:
            continue
        flag = flag_of(option.field)
        if option.switch:
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            for item in value if isinstance(value, list) else [value]:
                yield from (flag, str(item))


def _run_other(program: str, flags: list[str]) -> BenchResult:
    path = Path(os.path.expanduser(program))
    start = [sys.executable, str(path)] if path.suffix == ".py" else [str(path) if os.path.exists(path) else program]
    try:
        process = subprocess.Popen([*start, "bench", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise Usage(
            f"{show(program, 120)} cannot run: {show(error.strerror or error)}", hint=comparison.ADVICE
        ) from None
    try:
        content, _ = process.communicate()
    except BaseException:  # it has processes of its own to end, and does so on SIGTERM
        process.terminate()
        try:
            process.communicate(timeout=EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if process.returncode != 0:
        raise BadFile(
            f"{show(program, 120)} bench exited with code {process.returncode}{_message_of(content)}",
            hint="sdcli doctor",
        )
    return results.check(reading.read(content, program), program)


def _message_of(content: bytes) -> str:
    try:
        return f": {show(reading.read(content, 'answer')['error']['message'], 200)}"
    except (SdcliError, KeyError, TypeError):
        return ""
