"""What stands in prompts beside words: <lora:name:weight> tags, and syntax of other programs."""

from __future__ import annotations

import re

_FOREIGN = re.compile(
    r"""
    (?<!\\)\[[^\[\]]*:\s*(?:\d+(?:\.\d*)?|\.\d+)\s*\]   # [from:to:when]
  | (?<!\\)\[[^\[\]|]*\|[^\[\]]*\]                     # [this|that] in turns
  | \$\{[^{}]*\}                                        # ${a variable}
  | \bAND\b                                            # two prompts at once
    """,
    re.VERBOSE,
)


def of_other_programs(text: str) -> tuple[str, ...]:
    """Syntax of the web UI and its extensions that sdcli takes as plain words."""
    return tuple(dict.fromkeys(match[0] for match in _FOREIGN.finditer(text)))


_LORA = re.compile(r"<lora:([^:<>]{1,200})(?::([+-]?(?:\d{1,4}(?:\.\d{0,6})?|\.\d{1,6})))?>", re.ASCII)


def extract_loras(text: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The prompt without its <lora:name:weight> tags, and the tags."""
    loras = tuple((match[1], float(match[2] or 1.0)) for match in _LORA.finditer(text))
    return (_LORA.sub("", text).strip() if loras else text), loras


def lora_tag(name: str, weight: float) -> str:
    """The tag that extract_loras reads back; nothing for a name that no tag can hold."""
    tag = f"<lora:{name}:{lora_weight(weight)}>"
    return tag if _LORA.fullmatch(tag) else ""


def lora_weight(weight: float) -> str:
    """`0.8`, `1`: as a tag or --lora takes it."""
    return f"{weight:.6f}".rstrip("0").rstrip(".")
