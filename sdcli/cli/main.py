"""The entry point: finds the command, runs it, and turns however it ends into text and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from sdcli import __version__
from sdcli.cli.ending import heeded
from sdcli.cli.last_words import hardly_any_left, library_exits_explained, say_out_of_memory
from sdcli.errors import Interrupted, OutOfMemory, SdcliError, Stop, Usage, stopped_by
from sdcli.near import LIKELY, SURE, near_text, nearest
from sdcli.terminal import drop_stdout, lost, show, stdout_left, tell

_STDOUT_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG)

if TYPE_CHECKING:
    import typer

ELSEWHERE = {"txt2img": "generate", "draw": "generate"}  # what other programs call it


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `sdcli` script. Never returns."""
    words, alone = list(sys.argv[1:] if arguments is None else arguments), arguments is None
    try:
        with library_exits_explained(words) if alone else contextlib.nullcontext():
            code = _outcome(words, alone)
    except Exception as error:  # no room even for a sentence with figures
        memory = isinstance(error, (MemoryError, ImportError, SystemError))
        if not memory and getattr(error, "errno", None) != errno.ENOMEM and not hardly_any_left():
            raise
        code = say_out_of_memory(words)
    _leave(code, at_once=alone)


def _outcome(words: list[str], alone: bool) -> int:
    """`alone`: the process ends with this command."""
    from sdcli.cli.answer import Answered, bug_of, end

    try:
        if words in (["--version"], ["-V"]):  # without even importing Typer
            tell(f"sdcli {__version__}")
            return 0
        with heeded(for_good=alone):
            return _invoke(words)
    except Answered as answered:
        return answered.code
    except SdcliError as error:
        return end(error, words)
    except (KeyboardInterrupt, EOFError, Stop) as stop:
        return end(stopped_by(stop), words)
    except BrokenPipeError:
        drop_stdout()
        return 0
    except SystemExit:  # so Typer leaves when nobody reads its --help
        return 0
    except Exception as error:
        if (
            isinstance(error, OSError) and error.filename is None and error.errno in _STDOUT_LOST
        ):  # Typer's own printing
            drop_stdout()
            return end(lost(error), words)
        return end(_short_of_memory(error) or bug_of(error), words)


def _short_of_memory(error: Exception) -> OutOfMemory | None:
    """Memory that ran out where nobody expected it: in reading settings, in planning, in printing."""
    from sdcli.draw import oom

    return oom.without_a_plan(error) if oom.is_out_of_memory(error) else None


def _invoke(words: list[str]) -> int:
    import typer

    from sdcli.cli import app, complete, line

    name = next((word for word in words if not word.startswith("-")), "")
    completing = complete.BY_SHELL in os.environ
    if name and name not in app.COMMANDS:
        raise _no_command(name, words, list(app.COMMANDS))
    try:
        line.refuse_flags_as_values(words)
        code = app.call(app.build(None if completing else name), line.prompts_in_order(words))
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            tell(error.format_message())
            return 0
        raise _usage(error, words, f"sdcli {name} --help" if name else "sdcli --help") from None
    except typer.Abort:
        raise Interrupted("interrupted") from None
    if code == Interrupted.code:  # Typer's answer to Ctrl-C; a command that has said so itself raises Answered
        raise Interrupted("interrupted")
    return code if isinstance(code, int) else 0


def _no_command(word: str, words: list[str], commands: list[str]) -> SdcliError:
    """`sdcli "a cat"` means generate, but a mistyped command, or another program's, must not start drawing."""
    from sdcli.cli import line

    message = f'no command "{show(word, 60)}"'
    rest = words[words.index(word) + 1 :]
    near = nearest(word, commands, 1, LIKELY)
    if near or word in ELSEWHERE:
        meant, rest = near[0] if near else ELSEWHERE[word], rest
    elif words[0].startswith(("--install-completion", "--show-completion")):
        return Usage(f"{words[0]} takes no value: it is for the shell it runs in", hint=f"sdcli {words[0]}")
    else:
        meant, rest = "generate", line.with_one_prompt(words)
    if not rest:
        return Usage(message, hint="sdcli --help")
    return Usage(f"{message}; did you mean {meant}?", hint=line.joined([meant, *rest]) or f"sdcli {meant} --help")


def _usage(error: typer.TyperException, words: list[str], help: str) -> Usage:
    """Typer's error; for an option that does not exist, with the nearest of those that --help shows."""
    from sdcli.cli import line

    wrong, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if type(error).__name__ != "NoSuchOption" or not wrong or context is None:
        return Usage(_sentence(error.format_message()), hint=help)
    shown = [flag for one in context.command.params if not getattr(one, "hidden", False) for flag in one.opts]
    near = nearest(wrong, [flag for flag in shown if flag.startswith("--")])
    sure = nearest(wrong, near, 1, SURE)
    hint = line.renamed(words, wrong, sure[0]) if sure else ""
    return Usage(f"no option {show(wrong, 60)}{near_text(near)}", hint=hint or help)


def _sentence(message: str) -> str:
    text = show(message.strip().rstrip("."), 300)
    return text[:1].lower() + text[1:]


def _leave(code: int, at_once: bool) -> NoReturn:
    """`at_once`: without Python's own tidying up, which takes a second once torch is loaded and is for nothing here.

    After an interrupt that came while a module was being made, or an import that memory ended, it would even crash.
    """
    error = stdout_left()
    if error is not None and code == 0:
        from sdcli.cli.answer import say_error

        say_error(error)
        code = error.code
    if at_once:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
