"""A config that a library rejects is reported as a bad file, not as a bug in sdcli."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdcli.draw import oom
from sdcli.errors import BadFile, SdcliError


@contextmanager
def config_checked(what: str) -> Iterator[None]:
    try:
        yield
    except SdcliError:
        raise
    except Exception as error:
        if oom.is_out_of_memory(error):
            raise
        raise BadFile(
            f"cannot make the model's {what} from its config: {type(error).__name__}: {oom.first_line(error)}",
            hint="download the model again, or use another",
        ) from error
