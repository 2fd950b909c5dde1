"""The UNet as a page: the diagram with details on hover, a table of layers per block. One file that fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape

from sdcli.inspect import diagram, figures, tables
from sdcli.inspect.facts import Inspection
from sdcli.models.unet import Block
from sdcli.terminal import show

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2430;--soft:#5d6b7e;--line:#d8dfe8;--card:#f5f7fa}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e8edf4;--soft:#9aa8ba;--line:#333e4c;--card:#1c232d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:12px 20px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
svg.unet{width:100%;height:auto;display:block}
h2{font-size:19px;margin:28px 0 8px}
details{border-top:1px solid var(--line);padding:6px 0}
summary{cursor:pointer;display:flex;gap:14px;flex-wrap:wrap;font-variant-numeric:tabular-nums}
summary b{min-width:11em} summary span{color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:2px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500} th:first-child,td:first-child{text-align:left;font-family:ui-monospace,monospace}
#tip{position:fixed;z-index:2;max-width:460px;padding:10px 13px;border-radius:8px;border:1px solid var(--line);
background:var(--card);color:var(--ink);font-size:13.5px;white-space:pre-line;pointer-events:none;opacity:0;
transition:opacity .12s;box-shadow:0 4px 18px rgba(0,0,0,.18)}
#tip.on{opacity:1} g.block{cursor:pointer}
details:target,details.lit{background:var(--card)}
"""
SCRIPT = """
const about=JSON.parse(document.getElementById('about').textContent),tip=document.getElementById('tip');
for(const g of document.querySelectorAll('g.block,g.skips')){
 const title=g.querySelector('title'),words=about[g.dataset.block]||title.textContent;
 g.setAttribute('tabindex','0');g.setAttribute('aria-label',words);title.remove();
 const show=e=>{tip.textContent=words;tip.classList.add('on');
  const at=e.clientX===undefined?g.getBoundingClientRect():{right:e.clientX,bottom:e.clientY};
  const w=tip.offsetWidth,h=tip.offsetHeight;
  tip.style.left=Math.max(8,Math.min(at.right+14,innerWidth-w-8))+'px';
  tip.style.top=Math.max(8,Math.min(at.bottom+14,innerHeight-h-8))+'px'};
 const hide=()=>tip.classList.remove('on');
 g.addEventListener('pointermove',show);g.addEventListener('focus',show);
 g.addEventListener('pointerleave',hide);g.addEventListener('blur',hide);
 if(g.dataset.block)g.addEventListener('click',()=>{const d=document.getElementById('layers-'+g.dataset.block);
  if(d){d.open=true;d.scrollIntoView({behavior:'smooth',block:'center'})}});
}
"""


def html(look: Inspection) -> str:
    """The complete page. Without scripts, hovering shows the browser's own tooltip and the tables still open."""
    title = escape(show(look.source.title, 80))
    about = {block.name: _about(look, block) for block in look.unet.blocks}
    data = json.dumps(about, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{diagram.inline(look)}"
        f"<h2>What the work is</h2>\n{_kinds(look)}\n<h2>Every layer</h2>\n{_blocks(look)}\n</main>\n"
        f'<div id="tip" role="status"></div>\n<script type="application/json" id="about">{data}</script>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _about(look: Inspection, block: Block) -> str:
    """The diagram's hover text, and where the block's work goes."""
    rows = tables.by_kind(tables.layers(look)[block.first : block.last])
    parts = [f"  {row.name}: {figures.work(row.macs)}, {figures.count(row.parameters)}" for row in rows if row.macs]
    return "\n".join([diagram.about(look, block), *parts[:7]])


def _kinds(look: Inspection) -> str:
    rows = tables.by_kind(tables.layers(look))
    heads = ("part", "layers", "parameters", "", "multiply-adds", "")
    cells = [
        (
            row.name,
            f"{row.leaves:,}",
            f"{row.parameters:,}",
            figures.percent(row.parameters, look.unet.parameters),
            figures.work(row.macs),
            figures.percent(row.macs, look.unet.macs),
        )
        for row in rows
    ]
    return _table(heads, cells)


def _blocks(look: Inspection) -> str:
    """A table per block, initially closed."""
    leaves = tables.layers(look)
    out = []
    for block in look.unet.blocks:
        rows = leaves[block.first : block.last]
        out.append(
            f'<details id="layers-{escape(block.name)}"><summary><b>{escape(block.name)}</b>'
            f"<span>{escape(show(block.type, 60))}</span><span>{len(rows)} layers</span>"
            f"<span>{block.parameters:,} parameters</span><span>{block.macs / 1e9:,.2f} GMAC</span></summary>\n"
            f"{_layers(rows, block)}</details>"
        )
    return "\n".join(out)


def _layers(rows: Iterable[tables.Row], block: Block) -> str:
    heads = ("layer", "type", "weight", "parameters", "bytes", "output", "multiply-adds", "activation")
    cells = [
        (
            row.name.removeprefix(block.name + "."),
            row.type,
            figures.shape(row.weight_shape),
            f"{row.parameters:,}",
            figures.memory(row.bytes),
            figures.shape(row.output_shape),
            f"{row.macs:,}",
            figures.memory(row.activation_bytes),
        )
        for row in rows
    ]
    return _table(heads, cells)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(show(c, 200))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'
