"""What every family says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Known:
    """A repository that has a short name. Sizes and licence are facts, so that a plan needs no network."""

    alias: str
    repository: str
    revision: str
    licence: str
    formerly: tuple[str, ...] = ()  # names it had, or mirrors that vanished


@dataclass(frozen=True, kw_only=True)
class Family:
    name: str
    title: str
    pipeline: str  # the diffusers class a model_index.json of this family names
    components: tuple[str, ...]
    defaults: Mapping[str, Any]  # Request fields; the size too where the family was trained at one
    known: Known | None = None

    @property
    def native(self) -> tuple[int, int] | None:
        return (self.defaults["width"], self.defaults["height"]) if "width" in self.defaults else None
