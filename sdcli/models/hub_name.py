"""What a file on the Hub is called: owner/name, owner/name/file.safetensors, either with @commit after the name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

SUFFIX = ".safetensors"
USUAL = "pytorch_lora_weights.safetensors"  # what diffusers and its training scripts call a LoRA
# what diffusers calls a component by itself, such as a ControlNet; beside it is its config.json
COMPONENT = ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors")
_PART = r"[A-Za-z0-9][\w.\-]{0,95}"
_NAME = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>[\w.\-]{{1,100}}))?(/(?P<file>.{{1,300}}))?", re.ASCII
)


_PAGE = re.compile(
    rf"https?://(www\.)?(huggingface\.co|hf\.co)/(?P<repository>{_PART}/{_PART})"
    r"(/(?P<what>tree|blob|resolve)/(?P<revision>[\w.\-]{1,100})(/(?P<file>[^?#]{1,300}))?)?/?([?#].*)?",
    re.ASCII,
)


class HubName(NamedTuple):
    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repository + revision + (f"/{self.file}" if self.file else "")


def is_repository(text: str) -> bool:
    return re.fullmatch(f"{_PART}/{_PART}", text, re.ASCII) is not None


def parse(text: str) -> HubName | None:
    """None for what cannot be one. The caller has checked that it is not a path on this machine."""
    match = _NAME.fullmatch(text)
    if match is None or match["repository"].casefold().endswith(SUFFIX):  # a file in a folder
        return None
    file = match["file"]
    if file is not None and not (file.endswith(SUFFIX) and is_plain(file)):
        return None
    return HubName(match["repository"], match["revision"], file)


def of_page(text: str) -> HubName | None:
    """The name behind the URL of a page on the Hub; None for any other text."""
    page = _PAGE.fullmatch(text)
    if page is None:
        return None
    revision = page["revision"] if page["revision"] != "main" else None
    file = page["file"] if page["what"] != "tree" else None
    return parse(str(HubName(page["repository"], revision, file)))


def is_plain(file: str) -> bool:
    """Folders and a file name, without anything that leads outside."""
    return "\\" not in file and file.isprintable() and not {"", ".", ".."} & set(file.split("/"))


def the_one(names: Iterable[str]) -> str | None:
    """The file of a repository to use where none is named: the only one, or one under diffusers' default names."""
    weights = [name for name in names if name.endswith(SUFFIX)]
    if len(weights) == 1:
        return weights[0]
    return next((name for name in (USUAL, *COMPONENT) if name in weights), None)
