"""A picture as text for Graphviz, and as what Graphviz draws of it."""

from __future__ import annotations

import html
import shutil

from npu_lowering import errors
from npu_lowering.errors import OffDeviceError
from npu_lowering.offdevice.picture.model import CONST, DATA, FUSED, OP, OUTPUT, Box, Picture

_FILL = {FUSED: "#fff1d6", DATA: "#e6f3ec", OUTPUT: "#e6f3ec", CONST: "#ffffff", OP: "#f5f7fa"}
_EDGE = {FUSED: "#d97706", DATA: "#5da583", OUTPUT: "#5da583", CONST: "#9aa8b6", OP: "#b9c4cf"}
_ARROW = "#8795a3"


def dot(picture: Picture) -> str:
    """The graph in Graphviz's language."""
    lines = [
        f"digraph {_quoted(picture.title)} {{",
        '  node [shape=plain, fontname="Helvetica,Arial,sans-serif", fontsize=11];',
        f'  edge [color="{_ARROW}", arrowsize=0.7];',
        "  ranksep=0.45; nodesep=0.25;",
    ]
    for index, box in enumerate(picture.boxes):
        lines.append(f"  n{index} [label=<{_table(box)}>, tooltip={_quoted(box.tooltip())}];")
    for arrow in picture.arrows:
        source, target = picture.boxes[arrow.source], picture.boxes[arrow.target]
        start = f":o{arrow.output}:s" if arrow.output >= 0 and len(source.outputs) > 1 else ""
        end = f":i{arrow.port}:n" if arrow.port >= 0 and target.rows else ""
        attrs = [f"tooltip={_quoted(arrow.tooltip)}"]
        if arrow.port < 0:
            attrs.append("style=dashed")
        if target.kind == FUSED:
            attrs += [f'color="{_EDGE[FUSED]}"', "penwidth=1.8"]
        lines.append(f"  n{arrow.source}{start} -> n{arrow.target}{end} [{', '.join(attrs)}];")
    return "\n".join([*lines, "}", ""])


def check() -> None:
    """Find what draws.

    Raises:
        OffDeviceError: It is not here; the message says what to install, and what does without.
    """
    instead = "or write .html, which needs neither, or .dot, which is text"
    try:
        import graphviz  # noqa: F401
    except ModuleNotFoundError as error:
        raise OffDeviceError(
            "the Python package graphviz, which .svg and .png are drawn with, is not installed; "
            f"run: {errors.add(['graphviz'])}, {instead}"
        ) from error
    if shutil.which("dot") is None:
        raise OffDeviceError(
            "Graphviz's program dot, which .svg and .png are drawn with, is not in the PATH; "
            f"install Graphviz (apt-get install graphviz, dnf install graphviz), {instead}"
        )


def drawn(picture: Picture, kind: str) -> bytes:
    """What Graphviz makes of it.

    Args:
        picture: What to draw.
        kind: ``"svg"`` or ``"png"``.
    """
    import graphviz

    image: bytes = graphviz.Source(dot(picture)).pipe(format=kind)
    return image


def _table(box: Box) -> str:
    border = 'BORDER="2"' if box.kind == FUSED else 'BORDER="1"'
    rows = [
        f'<TABLE {border} CELLBORDER="0" CELLSPACING="0" CELLPADDING="3" STYLE="ROUNDED" '
        f'BGCOLOR="{_FILL[box.kind]}" COLOR="{_EDGE[box.kind]}">'
    ]
    if box.rows:
        cells = "".join(
            f'<TD PORT="i{index}"><B>{html.escape(port.name)}</B>{_small(port.text)}</TD>'
            for index, port in enumerate(box.inputs)
        )
        rows.append(f"<TR>{cells}</TR>")
    span = f'COLSPAN="{max(len(box.inputs) * box.rows, len(box.outputs), 1)}"'
    size = 15 if box.kind == FUSED else 12
    title = f'<B><FONT POINT-SIZE="{size}">{html.escape(box.title)}</FONT></B>'
    if box.subtitle:
        title += f' <FONT POINT-SIZE="9" COLOR="#5b6b7c">{html.escape(box.subtitle)}</FONT>'
    rows.append(f"<TR><TD {span}>{title}</TD></TR>")
    if box.kind == FUSED and box.attrs:
        text = ", ".join(f"{name}={value}" for name, value in box.attrs.items())
        rows.append(f'<TR><TD {span}><FONT POINT-SIZE="9">{html.escape(text)}</FONT></TD></TR>')
    if len(box.outputs) == 1 and box.outputs[0].text and box.kind != OUTPUT:
        text = html.escape(box.outputs[0].text)
        rows.append(f'<TR><TD {span}><FONT POINT-SIZE="9">{text}</FONT></TD></TR>')
    table = "".join([*rows, "</TABLE>"])
    if len(box.outputs) > 1:
        cells = "".join(
            f'<TD PORT="o{index}"><FONT POINT-SIZE="9">{html.escape(f"{port.name}: ")}'
            f"{html.escape(port.text or '?')}</FONT></TD>"
            for index, port in enumerate(box.outputs)
        )
        table = table.replace("</TABLE>", f"<TR>{cells}</TR></TABLE>")
    return table


def _small(text: str) -> str:
    return f'<BR/><FONT POINT-SIZE="9">{html.escape(text)}</FONT>' if text else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
