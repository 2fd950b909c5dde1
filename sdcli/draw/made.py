"""Libraries say in their own ways that a config cannot be; here it becomes one: the model's file is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.errors import BadFile, SdcliError


@contextmanager
def made_from(file: str, what: str) -> Iterator[None]:
    """Around what is made from nothing but the values in one of the model's files."""
    try:
        yield
    except SdcliError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BadFile(
            f"{what} cannot be made from the model's {file}: {first_line(error)}",
            hint="get the model again, or another",
        ) from None
