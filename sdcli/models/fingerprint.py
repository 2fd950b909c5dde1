"""What a model's weights are, found in milliseconds: enough to tell them from any others a model was ever given.

Reading gigabytes for a hash of all of it would take longer than loading them. Training and merging move every number
of the tensors that they touch, so a few of each tensor tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdcli import reading
from sdcli.errors import SdcliError
from sdcli.models.families import find
from sdcli.models.headers import Tensor, read_header
from sdcli.models.model import Model

OF_EACH = 4096  # bytes, from its middle
LETTERS = 16


def fingerprints(model: Model) -> dict[str, str]:
    """Of the model's own components, by name: what is used beside it is known by its hash. A component whose files
    cannot be read any more has none."""
    parts = {name: model.components[name].files for name in find(model.family).components if name in model.components}
    found = {files: _read(files) for files in dict.fromkeys(parts.values())}  # one file may hold several components
    return {name: print for name, files in parts.items() if (print := found[files])}


def _read(files: tuple[str, ...]) -> str:
    try:
        return fingerprint(files) if files else ""
    except (OSError, SdcliError):
        return ""


def fingerprint(files: tuple[str, ...]) -> str:
    """Of all tensors in these files: their names, types, shapes, and some of their numbers. Metadata, and the order in
    the files, have no say."""
    from hashlib import sha256  # slow to load

    state = sha256()
    for name, tensor, numbers in sorted(_looked_at(files), key=lambda found: found[0]):
        state.update(f"{name}\n{tensor.dtype}\n{tensor.shape}\n".encode())
        state.update(numbers)
    return state.hexdigest()[:LETTERS]


def _looked_at(files: tuple[str, ...]) -> Iterator[tuple[str, Tensor, bytes]]:
    """In the order of the file: a disk that turns reads on."""
    for path in files:
        header = read_header(Path(path))
        with reading.opened(path) as file:
            for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].begin):
                length = min(OF_EACH, tensor.size)
                file.seek(header.data_start + tensor.begin + (tensor.size - length) // 2)
                yield name, tensor, file.read(length)
