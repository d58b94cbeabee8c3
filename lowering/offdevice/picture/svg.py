"""A picture as SVG, drawn here: the part of the HTML page that needs no other program."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from npu_lowering.offdevice.picture import layout
from npu_lowering.offdevice.picture.layout import Link, Size
from npu_lowering.offdevice.picture.model import FUSED, OUTPUT, Box, Picture, Port

_CHAR, _SMALL_CHAR = 8.0, 6.3  # widths of a letter: of titles, and of the rest in monospace
_HEAD, _CELL, _FOOT, _PAD = 24.0, 32.0, 18.0, 10.0
_MARGIN = 16.0
_LONGEST = 44  # letters; the tooltip has the rest


@dataclass(frozen=True)
class _Shape:
    """What a box looks like, from its left upper corner."""

    size: Size
    cells: tuple[float, ...]  # widths of the inputs' cells
    outs: tuple[float, ...]  # widths of the outputs' cells


def svg(picture: Picture, prefix: str) -> str:
    """Draw it.

    Args:
        picture: What to draw.
        prefix: Begins the ids of boxes, and the names of the places they link to.
    """
    shapes = [_shape(box) for box in picture.boxes]
    links = [
        Link(
            arrow.source,
            _middle(shapes[arrow.source].outs, arrow.output, shapes[arrow.source].size.width),
            arrow.target,
            _middle(shapes[arrow.target].cells, arrow.port, shapes[arrow.target].size.width),
        )
        for arrow in picture.arrows
    ]
    placed = layout.layout([shape.size for shape in shapes], links)
    width, height = placed.width + 2 * _MARGIN, placed.height + 2 * _MARGIN
    lines = [
        f'<svg class="graph" xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="{-_MARGIN:.0f} {-_MARGIN:.0f} {width:.0f} {height:.0f}" '
        f'role="img"><title>{html.escape(str(picture))}</title>',
        f"<defs>{_tip(prefix, 'tip')}{_tip(prefix, 'fused-tip')}</defs>",
    ]
    for arrow, path in zip(picture.arrows, placed.paths):
        fused = picture.boxes[arrow.target].kind == FUSED
        tip = "fused-tip" if fused else "tip"
        kind = "arrow" + (" to-fused" if fused else "") + (" control" if arrow.port < 0 else "")
        lines.append(
            f'<path class="{kind}" data-from="{prefix}{arrow.source}" '
            f'data-to="{prefix}{arrow.target}" marker-end="url(#{prefix}{tip})" d="{_curve(path)}">'
            f"<title>{html.escape(arrow.tooltip)}</title></path>"
        )
    for index, (box, shape, corner) in enumerate(zip(picture.boxes, shapes, placed.corners)):
        lines += _box(box, shape, corner, f"{prefix}{index}")
    return "\n".join([*lines, "</svg>"])


def _tip(prefix: str, name: str) -> str:
    return (
        f'<marker id="{prefix}{name}" class="{name}" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0.5 L8 4 L0 7.5 z"/></marker>'
    )


def _shape(box: Box) -> _Shape:
    cells = tuple(map(_cell_width, box.inputs)) if box.rows else ()
    several = len(box.outputs) > 1
    outs = tuple(_width(_out(port)) for port in box.outputs) if several else ()
    head = len(_cut(box.title)) * _CHAR + (len(_cut(box.subtitle)) + 1) * _SMALL_CHAR + 2 * _PAD
    width = max(head, sum(cells), sum(outs), _width(_cut(_foot(box))))
    if cells:
        cells = tuple(cell * width / sum(cells) for cell in cells)
    if outs:
        outs = tuple(out * width / sum(outs) for out in outs)
    height = _HEAD + (_CELL if cells else 0) + (_FOOT if _foot(box) or outs else 0)
    if box.kind == FUSED and box.attrs:
        height += _FOOT
    return _Shape(Size(width, height), cells, outs)


def _box(box: Box, shape: _Shape, corner: tuple[float, float], name: str) -> list[str]:
    x, y = corner
    width, height = shape.size.width, shape.size.height
    lines = [
        f'<a href="#{name}-row"><g class="box {box.kind}" id="{name}" '
        f'transform="translate({x:.1f} {y:.1f})"><title>{html.escape(box.tooltip())}</title>',
        f'<rect class="frame" width="{width:.1f}" height="{height:.1f}" rx="5"/>',
    ]
    at, left = 0.0, 0.0
    for port, cell in zip(box.inputs, shape.cells):
        if left:
            lines.append(f'<path class="rule" d="M{left:.1f} 0 V{_CELL:.0f}"/>')
        middle = left + cell / 2
        lines.append(_text("port", middle, 13, port.name))
        lines.append(_text("info", middle, 26, _cut(port.text)))
        left += cell
    if shape.cells:
        at = _CELL
        lines.append(f'<path class="rule" d="M0 {at:.0f} H{width:.1f}"/>')
    lines.append(
        f'<text x="{width / 2:.1f}" y="{at + 16:.1f}"><tspan class="title">'
        f"{html.escape(_cut(box.title))}</tspan>"
        f'<tspan class="info" dx="6">{html.escape(_cut(box.subtitle))}</tspan></text>'
    )
    at += _HEAD
    if box.kind == FUSED and box.attrs:
        lines.append(_text("info", width / 2, at + 10, _attributes(box)))
        at += _FOOT
    if shape.outs:
        lines.append(f'<path class="rule" d="M0 {at - 1:.0f} H{width:.1f}"/>')
        left = 0.0
        for port, out in zip(box.outputs, shape.outs):
            if left:
                lines.append(f'<path class="rule" d="M{left:.1f} {at - 1:.0f} v{_FOOT + 1:.0f}"/>')
            lines.append(_text("info", left + out / 2, at + 11, _out(port)))
            left += out
    elif _foot(box):
        lines.append(_text("info", width / 2, at + 10, _cut(_foot(box))))
    return [*lines, "</g></a>"]


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _attributes(box: Box) -> str:
    return ", ".join(f"{name}={value}" for name, value in box.attrs.items())


def _foot(box: Box) -> str:
    """What comes out of a box with one output; what a large constant holds is not shown."""
    if box.kind == OUTPUT or len(box.outputs) != 1:
        return ""
    return box.outputs[0].text


def _out(port: Port) -> str:
    return f"{port.name}: {port.text or '?'}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _width(text: str) -> float:
    return len(text) * _SMALL_CHAR + 2 * _PAD


def _cell_width(port: Port) -> float:
    return max(_width(port.name), _width(_cut(port.text))) - _PAD / 2


def _middle(widths: Sequence[float], index: int, whole: float) -> float:
    """The middle of a cell, or of the box where it has none."""
    if not widths or index < 0:
        return whole / 2
    return sum(widths[:index]) + widths[index] / 2


def _curve(points: Sequence[tuple[float, float]]) -> str:
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    straight = False  # down to the point before this one, which is still to be drawn
    for place in range(1, len(points)):
        (x0, y0), (x1, y1) = points[place - 1], points[place]
        if abs(x0 - x1) < 0.05:
            straight = True
            continue
        if straight:
            parts.append(f"V{y0:.1f}")
        bend = (y0 + y1) / 2
        parts.append(f"C{x0:.1f} {bend:.1f} {x1:.1f} {bend:.1f} {x1:.1f} {y1:.1f}")
        straight = False
    if straight:
        parts.append(f"V{points[-1][1]:.1f}")
    return " ".join(parts)
