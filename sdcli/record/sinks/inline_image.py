"""The image itself in the terminal: inline where it can show one, else two pixels in each character."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

WIDEST = 64  # cells: enough to see what was drawn
KITTY_CHUNK = 4096
UPPER_HALF = "▀"


def inline_image(width: int, height: int, pixels: bytes, columns: int, rows: int, environ: Mapping[str, str]) -> str:
    """Text that shows RGB8 `pixels` within `columns` × `rows` cells; empty where colour is unwanted or impossible."""
    across, down = box(width, height, min(columns - 2, WIDEST), rows)
    if across < 4 or down < 2 or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return ""
    from PIL import Image

    image = Image.frombytes("RGB", (width, height), pixels)
    kind = protocol(environ)
    if kind == "blocks":
        small = image.resize((across, down * 2), Image.Resampling.LANCZOS)
        true_colour = environ.get("COLORTERM", "") in ("truecolor", "24bit")
        return "\n".join(_rows(small, true_colour))
    small = image.resize((across * 10, round(across * 10 * height / width)), Image.Resampling.LANCZOS)
    return _kitty(_png(small), across) if kind == "kitty" else _iterm(_png(small), across)


def box(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """The largest cells × cells of the image's shape within the room; a cell is twice as high as wide."""
    across = min(columns, int(rows * 2 * width / height))
    return across, max(0, min(rows, round(across * height / width / 2)))


def protocol(environ: Mapping[str, str]) -> str:
    """kitty | iterm | blocks. Inside tmux or screen only characters pass reliably."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or term.startswith(("tmux", "screen")):
        return "blocks"
    if program in ("iTerm.app", "WezTerm"):
        return "iterm"
    kitty = environ.get("KITTY_WINDOW_ID") or "kitty" in term or "ghostty" in term or program == "ghostty"
    return "kitty" if kitty else "blocks"


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _kitty(data: bytes, columns: int) -> str:
    text = base64.b64encode(data).decode()
    chunks = [text[start : start + KITTY_CHUNK] for start in range(0, len(text), KITTY_CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        more = int(number + 1 < len(chunks))
        keys = f"f=100,a=T,q=2,c={columns},m={more}" if number == 0 else f"m={more}"
        parts.append(f"\x1b_G{keys};{chunk}\x1b\\")
    return "".join(parts)


def _iterm(data: bytes, columns: int) -> str:
    return f"\x1b]1337;File=inline=1;width={columns};size={len(data)}:{base64.b64encode(data).decode()}\x07"


def _rows(image: Any, true_colour: bool) -> Iterator[str]:
    """Each character's foreground is the upper pixel, its background the lower one."""
    raw, stride = image.tobytes(), image.width * 3
    for top in range(0, image.height, 2):
        cells = []
        before = ""
        for x in range(0, stride, 3):
            upper = raw[top * stride + x : top * stride + x + 3]
            lower = raw[(top + 1) * stride + x : (top + 1) * stride + x + 3]
            colours = f"\x1b[38;{_colour(upper, true_colour)};48;{_colour(lower, true_colour)}m"
            cells.append(UPPER_HALF if colours == before else colours + UPPER_HALF)
            before = colours
        yield "".join(cells) + "\x1b[0m"


def _colour(rgb: bytes, true_colour: bool) -> str:
    if true_colour:
        return "2;{};{};{}".format(*rgb)
    red, green, blue = (round(channel / 51) for channel in rgb)  # the 6 × 6 × 6 cube of the 256 colours
    return f"5;{16 + 36 * red + 6 * green + blue}"
