"""Pictures as one HTML page, which needs no other file, no program and no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

from npu_lowering.offdevice.picture.model import DATA, FUSED, Box, Picture, described
from npu_lowering.offdevice.picture.svg import svg

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6b7c; --line: #9aa8b6;
  --page: #fff; --op: #f5f7fa; --edge: #b9c4cf; --data: #e6f3ec; --data-edge: #5da583;
  --fused: #fff1d6; --fused-edge: #d97706; --mark: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9fb0c0; --line: #6b7b8b;
  --page: #14191f; --op: #212932; --edge: #45525f; --data: #17382a; --data-edge: #4f9e78;
  --fused: #46300a; --fused-edge: #f59e0b; --mark: #7aa7ff; } }
body { margin: 1.5rem; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .2rem 0 .8rem; color: var(--soft); }
.view { overflow: auto; max-height: 88vh; border: 1px solid var(--edge); border-radius: 8px; }
.fit .view svg { max-width: 100%; height: auto; }
svg.graph { display: block; margin: auto; }
svg text { text-anchor: middle; fill: var(--ink); }
svg .title { font: 600 13px system-ui, sans-serif; }
svg .port { font: 600 10.5px ui-monospace, Menlo, Consolas, monospace; }
svg .info { font: 10.5px ui-monospace, Menlo, Consolas, monospace; fill: var(--soft); }
.frame { fill: var(--op); stroke: var(--edge); } .rule { stroke: var(--edge); fill: none; }
.data .frame, .output .frame { fill: var(--data); stroke: var(--data-edge); }
.const .frame { stroke-dasharray: 4 3; }
.fused .frame { fill: var(--fused); stroke: var(--fused-edge); stroke-width: 2.5; }
.fused .rule { stroke: var(--fused-edge); }
.fused .title { font-size: 15px; } .fused .info { fill: var(--ink); }
.arrow { fill: none; stroke: var(--line); stroke-width: 1.2; }
.to-fused { stroke: var(--fused-edge); stroke-width: 1.8; } .control { stroke-dasharray: 4 3; }
marker path { fill: var(--line); } .fused-tip path { fill: var(--fused-edge); }
svg a:hover .frame, svg .near .frame { stroke: var(--mark); stroke-width: 2.5; }
svg .arrow.near, svg .arrow:hover { stroke: var(--mark); stroke-width: 2.5; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0;
  border-bottom: 1px solid var(--edge); }
td { font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
tr.fused td { background: var(--fused); } tr:target td { box-shadow: inset 0 2px var(--mark); }
a { color: inherit; } button { font: inherit; }
"""
# Without it all is there but the marking of a box's own arrows.
_SCRIPT = """
for (const box of document.querySelectorAll("g.box")) {
  const mark = on => {
    for (const arrow of box.ownerSVGElement.querySelectorAll(
        `[data-from="${box.id}"], [data-to="${box.id}"]`)) {
      arrow.classList.toggle("near", on);
      for (const end of [arrow.dataset.from, arrow.dataset.to])
        document.getElementById(end).classList.toggle("near", on);
    }
  };
  box.addEventListener("mouseenter", () => mark(true));
  box.addEventListener("mouseleave", () => mark(false));
}
document.getElementById("fit").addEventListener(
  "click", () => document.body.classList.toggle("fit"));
"""


def page(pictures: Sequence[Picture], title: str) -> str:
    """An HTML page of pictures, each with a table of its nodes.

    Args:
        pictures: What to draw, in this order.
        title: The heading of the page.
    """
    heading = html.escape(title)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{heading}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{heading}</h1>",
        "<p>Point at a box for its attributes and at an arrow for what it carries; click a box for "
        'its row in the table. <button id="fit" type="button">Fit to the window</button></p>',
    ]
    for number, picture in enumerate(pictures):
        parts += _section(picture, f"g{number}n")
    parts.append(f"<script>{_SCRIPT}</script></body></html>\n")
    return "\n".join(parts)


def _section(picture: Picture, prefix: str) -> list[str]:
    parts = [
        f"<section><h2>{html.escape(str(picture))}</h2>",
        f'<div class="view">{svg(picture, prefix)}</div>',
    ]
    for box in picture.boxes:
        if box.kind == FUSED:
            parts += [f"<h2>{html.escape(box.name)}</h2>", _inputs(box)]
    rows = [_row(box, f"{prefix}{index}") for index, box in enumerate(picture.boxes)]
    heads = "".join(
        f"<th>{name}</th>" for name in ("node", "operator", "reads", "attributes", "gives")
    )
    return [*parts, f"<h2>Nodes</h2><table><tr>{heads}</tr>", *rows, "</table></section>"]


def _inputs(box: Box) -> str:
    """The inputs of the fused node, and its attributes, a row each."""
    rows = [(port.name, port.text or "?", str(port.source)) for port in box.inputs]
    rows += [(name, value, "attribute") for name, value in box.attrs.items()]
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr><th>name</th><th>value</th><th>from</th></tr>{cells}</table>"


def _row(box: Box, name: str) -> str:
    operator = box.subtitle if box.kind == DATA else box.title
    cells = (
        f'<a href="#{name}">{html.escape(box.name)}</a>',
        html.escape(operator),
        "<br>".join(html.escape(f"{port.name} = {described(port)}") for port in box.inputs),
        "<br>".join(html.escape(f"{key} = {value}") for key, value in box.attrs.items()),
        "<br>".join(html.escape(port.text or "?") for port in box.outputs),
    )
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{box.kind}" id="{name}-row">{row}</tr>'
