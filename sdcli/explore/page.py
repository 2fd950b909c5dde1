"""The grid as a page beside the images: settings under the pointer, an image at its full size on a click.

It runs no script, loads nothing but these images, and says so to the browser.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from urllib.parse import quote

from sdcli.explore.cells import Cell, Sweep
from sdcli.request import sweeps
from sdcli.terminal import show

STYLE = """:root{color-scheme:light dark;--paper:#fff;--ink:#1c2430;--soft:#5d6b7e;--line:#d8dfe8}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e8edf4;--soft:#9aa8ba;--line:#333e4c}}
body{margin:0;padding:16px 20px;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:20px;margin:0}p{margin:4px 0 16px;color:var(--soft)}table{border-spacing:4px}
th{position:sticky;background:var(--paper);font-weight:500;text-align:left;vertical-align:top;z-index:1}
thead th{top:0}tbody th{left:0;max-width:240px;overflow-wrap:anywhere}
button{border:0;padding:0;background:none;cursor:zoom-in;display:block}
button img{display:block;width:200px;height:200px;object-fit:contain;background:var(--line)}
button:focus-visible{outline:3px solid #2a6fc9}.none{width:200px;height:200px;background:var(--line);color:var(--soft)}
[popover]{border:0;padding:12px;max-width:96vw;max-height:96vh;overflow:auto;background:var(--paper);color:var(--ink)}
[popover] img{display:block;max-width:90vw;max-height:76vh}::backdrop{background:#000a}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:8px 0 0}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;max-width:80ch}"""


def html(sweep: Sweep) -> Iterator[bytes]:
    """In pieces: ten thousand cells as one text would take much memory."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src 'self' file:; style-src 'sha256-{digest}'"
    title = f"Sweep {show(sweep.run, 80)}"
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<p>{escape(sweeps.described(sweep.axes))}</p>\n<table>\n<thead><tr><td></td>"
    ).encode()
    for value in sweep.columns.values:
        yield f'<th scope="col">{_text(f"{sweep.columns.name} {value}")}</th>'.encode()
    yield b"</tr></thead>\n<tbody>\n"
    cells = sweep.at()
    for row in sweep.rows:
        labels = (f"{axis.name} {value}" for axis, value in zip(sweep.axes[1:], row, strict=True))
        yield f'<tr><th scope="row">{"<br>".join(map(_text, labels))}</th>'.encode()
        for value in sweep.columns.values:
            yield _cell(sweep, cells.get((value, *row))).encode("utf-8", "replace")
        yield b"</tr>\n"
    yield b"</tbody>\n</table>\n</body>\n</html>\n"


def _text(text: str) -> str:
    return escape(show(text, 400))


def _cell(sweep: Sweep, cell: Cell | None) -> str:
    if cell is None or cell.file is None:
        return f'<td><div class="none">{escape(cell.status if cell else "not drawn")}</div></td>'
    swept = dict(zip((axis.name for axis in sweep.axes), cell.values, strict=True))
    settings = [*swept.items(), *((name, value) for name, value in _settings(cell) if name not in swept)]
    title = _text(", ".join(f"{name} {value}" for name, value in settings))
    listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in settings)
    image = f'<img src="{escape(quote(cell.file))}" loading="lazy" alt="{_text(sweeps.name_of(swept))}">'
    name = f"cell-{cell.index}"
    return (
        f'<td><button popovertarget="{name}" title="{title}">{image}</button>'
        f'<div popover id="{name}">{image}<dl>{listed}</dl></div></td>\n'
    )


def _settings(cell: Cell) -> list[tuple[str, str]]:
    return [
        ("prompt", cell.prompt), ("seed", str(cell.seed)), ("sampler", cell.sampler), ("steps", str(cell.steps)),
        ("guidance", f"{cell.guidance:g}"), ("size", f"{cell.width}×{cell.height}"), ("file", cell.file or ""),
    ]  # fmt: skip
