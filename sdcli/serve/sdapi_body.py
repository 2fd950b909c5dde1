"""The fields of a body, each with its type: what cannot be read as that is refused by the field's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sdcli.serve.bodies import BadBody, from_base64
from sdcli.serve.uploads import kept
from sdcli.terminal import show

NUMBER = r" *([+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,2})?)? *"  # or nothing, in a text
_NUMBER = re.compile(NUMBER, re.ASCII)


class Body:
    """A JSON object; null is the same as absent. `where` begins the names of its fields in messages; `given` takes in
    where images are kept, with the fields they were in."""

    def __init__(self, fields: Mapping[str, Any], where: str = "", given: dict[str, str] | None = None) -> None:
        self.fields = fields
        self.where = where
        self.given = {} if given is None else given

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def refused(self, name: str, what: str) -> BadBody:
        return BadBody(f"{self.where}{name}: {what}", self.where + name)

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.refused(name, "expected text")

    def number(self, name: str) -> float | None:
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and not value.strip(" ")):
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise self.refused(name, "expected a number")
        if isinstance(value, str) and _NUMBER.fullmatch(value) is None:
            raise self.refused(name, f'"{show(value, 40)}" is not a number')
        return float(value)

    def whole(self, name: str) -> int | None:
        number = self.number(name)
        if number is not None and number != int(number):
            raise self.refused(name, f"{number:g} is not a whole number")
        return None if number is None else int(number)

    def yes(self, name: str) -> bool | None:
        value = self.fields.get(name)
        if value is None or isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        raise self.refused(name, "expected true or false")

    def listed(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if value is None or isinstance(value, list):
            return value or []
        raise self.refused(name, "expected a list")

    def inner(self, name: str) -> Body:
        """An object in it; an empty one where there is none. To PHP an empty one is a list."""
        value = self.fields.get(name)
        if value in (None, []) or isinstance(value, Mapping):
            return Body(value or {}, f"{self.where}{name}.", self.given)
        raise self.refused(name, "expected an object")

    def inner_of(self, name: str, value: Any, number: int) -> Body:
        """An object in a list in it."""
        if not isinstance(value, Mapping):
            raise self.refused(f"{name}[{number}]", "expected an object")
        return Body(value, f"{self.where}{name}[{number}].", self.given)

    def neutral(self, name: str, values: Collection[Any], because: str = "") -> None:
        """Refuses what would draw something else than is drawn here."""
        value = self.fields.get(name)
        if value is not None and value not in values:
            shown = f'"{show(value, 40)}"' if isinstance(value, str) else show(value, 40)
            plain = "this" if isinstance(value, (dict, list)) else shown
            raise self.refused(name, f"{plain} is not supported" + (f": {because}" if because else ""))

    def kept(self, content: bytes, name: str, upload: Callable[[bytes], str]) -> str:
        """The path of an image that was in a field."""
        return kept(upload, content, self.where + name, self.given)

    def image(self, name: str) -> bytes | None:
        value = self.fields.get(name)
        return None if value is None or value == "" else content_of(value, self.where + name)


def content_of(value: Any, name: str) -> bytes:
    """An image file in base64, with or without what a data URL begins with."""
    if not isinstance(value, str):
        raise BadBody(f"{name}: expected an image in base64", name)
    if value.startswith("data:"):
        head, _, value = value.partition(",")
        if not head.endswith(";base64"):
            raise BadBody(f"{name}: expected a data URL in base64", name)
    elif re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]{0,20}://", value):
        raise BadBody(f"{name}: an image is sent in base64; no URL is fetched", name)
    plain = "".join(value.split())
    content = from_base64(plain + "=" * (-len(plain) % 4))
    if content is None:
        raise BadBody(f"{name}: not valid base64", name)
    return content


def typed(number: float) -> str:
    """As it would be typed: without an exponent, and read again as the same number where that is possible."""
    text = repr(number)
    return f"{number:.18f}" if "e" in text else text.removesuffix(".0")
