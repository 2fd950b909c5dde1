"""A textual-inversion embedding: vectors that a word of the prompt stands for. Only its header is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcli.errors import BadFile
from sdcli.models.headers import Header, read_header
from sdcli.models.kinds import EMBEDDINGS, TITLES, kind_of
from sdcli.models.lora import wrong_family
from sdcli.models.model import ENCODERS, Model
from sdcli.terminal import show

MOST_VECTORS = 75  # tokens in a chunk of the prompt, without its two marks
_PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}  # SDXL's two, by the names that all trainers use


@dataclass(frozen=True, kw_only=True)
class Embedding:
    path: Path
    tensors: Mapping[str, str]  # text encoder → its tensor's name
    vectors: int  # tokens it takes in the prompt
    token: str = ""  # the word diffusers stored it under, where the file names one

    def words(self, word: str) -> tuple[str, ...]:
        """The words that mean it in a prompt: `word`, and the file's own."""
        return tuple(dict.fromkeys(filter(None, (word, self.token))))


def read(path: Path, model: Model) -> Embedding:
    """The embedding in a file, if it fits the model's text encoders; else BadFile."""
    header = read_header(path)
    family = _family(path, header)
    encoders = [name for name in ENCODERS if name in model.components]
    double = set(header.tensors) <= set(_PARTS) and len(header.tensors) == 2
    if double != (len(encoders) == 2):
        raise _misfit(path, header, family, model)
    tensors = {_PARTS[name]: name for name in header.tensors} if double else {encoders[0]: next(iter(header.tensors))}
    by_encoder = {encoder: header.tensors[name] for encoder, name in tensors.items()}
    for encoder, tensor in by_encoder.items():
        if tensor.shape[-1] != model.components[encoder].config.get("hidden_size"):
            raise _misfit(path, header, family, model)
    counts = {tensor.shape[0] if len(tensor.shape) == 2 else 1 for tensor in by_encoder.values()}
    if len(counts) != 1 or not 1 <= max(counts) <= MOST_VECTORS:
        listed = " and ".join(str(count) for count in sorted(counts))
        raise BadFile(
            f"{show(path)} has {listed} vectors; an embedding has 1 to {MOST_VECTORS}, as many for each encoder",
            hint="sdcli help formats",
        )
    return Embedding(path=path, tensors=tensors, vectors=max(counts), token=token_of(header))


def token_of(header: Header) -> str:
    """The word stored in the file: diffusers uses it as the tensor's name."""
    return next((name for name in header.tensors if len(header.tensors) == 1 and name not in EMBEDDINGS), "")


def _family(path: Path, header: Header) -> str:
    """The family it was made for, "" where that is unknown; BadFile for what is no embedding."""
    kind = kind_of(header)
    single = len(header.tensors) in (1, 2) and all(1 <= len(t.shape) <= 2 for t in header.tensors.values())
    if kind.kind not in ("embedding", "unknown") or not single:
        title = "" if kind.kind == "unknown" else f"{TITLES.get(kind.kind, kind.kind)}, "
        raise BadFile(f"{show(path)} is {title}not an embedding", hint="sdcli help formats")
    return kind.family


def _misfit(path: Path, header: Header, family: str, model: Model) -> BadFile:
    if family and model.family in TITLES and family != model.family:
        return wrong_family(path, "an embedding", family, model)
    widths = " and ".join(str(tensor.shape[-1]) for tensor in header.tensors.values())
    expected = " and ".join(
        str(component.config.get("hidden_size"))
        for name, component in model.components.items()
        if name.startswith("text_encoder")
    )
    return BadFile(
        f"{show(path)} has vectors of width {widths}; {show(model.name, 80)} needs width {expected}",
        hint="-m sd15",
    )
