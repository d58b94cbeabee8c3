"""What a picture of a lowered graph shows, whichever way it is drawn.

A small constant is shown as the value of the input that reads it, since TorchAIR makes one for each
axis and each shape. Everything else is a box, and what it reads an arrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from npu_lowering.offdevice.engine.graph import (
    DATA_TYPES,
    FUSED_TYPE,
    Graph,
    Node,
    Source,
    TensorInfo,
    show_value,
)

FUSED, DATA, CONST, OUTPUT, OP = "fused", "data", "const", "output", "op"
_SMALL = 8  # elements


@dataclass(frozen=True)
class Port:
    """An input or an output of a box.

    Attributes:
        name: The operator's name for it.
        text: Dtype and shape, the value of a small constant, or nothing where it is not known.
        source: What an input reads; None for an output.
    """

    name: str
    text: str
    source: Source | None = None


@dataclass(frozen=True)
class Box:
    """A node.

    Attributes:
        name: As in the graph.
        kind: One of the constants of this module.
        title: What is read first: the operator, or the name of an input of the graph.
        subtitle: The rest of the two.
        inputs: In the order of the node.
        outputs: In the order of the node.
        attrs: Attributes as text, those of the device's IR only.
        rows: Whether the inputs are shown each by itself; one alone needs no name.
    """

    name: str
    kind: str
    title: str
    subtitle: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attrs: Mapping[str, str]
    rows: bool

    def tooltip(self) -> str:
        """All that is known of the node, a line each."""
        lines = [f"{self.name}: {self.title}" if self.kind in (OP, FUSED) else self.name]
        lines += [f"  {port.name} = {described(port)}" for port in self.inputs]
        lines += [f"  {name}={value}" for name, value in self.attrs.items()]
        lines += [f"  -> {port.text or '?'}" for port in self.outputs]
        return "\n".join(lines)


@dataclass(frozen=True)
class Arrow:
    """What a box reads.

    Attributes:
        source: Index of a box.
        output: Index of its output, or -1 for an order without data.
        target: Index of a box.
        port: Index of its input, or -1.
        tooltip: Both ends, and what is passed.
    """

    source: int
    output: int
    target: int
    port: int
    tooltip: str


@dataclass(frozen=True)
class Picture:
    """A graph to be drawn.

    Attributes:
        title: The name of the graph.
        boxes: In the order of the model.
        arrows: By target, then by input.
    """

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    def __str__(self) -> str:
        fused = sum(box.kind == FUSED for box in self.boxes)
        return f"{self.title}: {_count(len(self.boxes), 'box')}, {fused} {FUSED_TYPE}"


def picture(graph: Graph) -> Picture:
    """What to draw of a graph."""
    values = _values_in_place(graph)
    infos = {
        Source(node.name, index): info
        for node in graph.nodes
        for index, info in enumerate(node.outputs)
    }
    nodes = [node for node in graph.nodes if node.name not in values]
    index = {node.name: place for place, node in enumerate(nodes)}
    boxes = tuple(_box(node, infos, values) for node in nodes)
    arrows: list[Arrow] = []
    for target, node in enumerate(nodes):
        for port, (name, source) in enumerate(node.inputs.items()):
            if source.node in index:
                tip = f"{source} -> {name} of {node.name}\n{tensor_text(infos.get(source))}".strip()
                arrows.append(Arrow(index[source.node], source.index, target, port, tip))
        for before in node.control:
            if before in index:
                tip = f"{before} runs before {node.name}"
                arrows.append(Arrow(index[before], -1, target, -1, tip))
    return Picture(graph.name, boxes, tuple(arrows))


def tensor_text(info: TensorInfo | None) -> str:
    """Dtype, shape and format, as far as they are known."""
    if info is None or (info.dtype is None and info.shape is None):
        return ""
    return str(info)


def described(port: Port) -> str:
    """An input in words: what it reads, and what that is."""
    return f"{port.source} {port.text}".strip()


def _count(number: int, word: str) -> str:
    return f"{number} {word if number == 1 else word + 'es'}"


def _values_in_place(graph: Graph) -> dict[str, str]:
    """The small constants that other nodes read, by name, as text."""
    by_operators = {
        source.node
        for node in graph.nodes
        if node.type != "NetOutput"
        for source in node.inputs.values()
    }
    ends = {source.node for source in graph.outputs}
    found: dict[str, str] = {}
    for node in graph.nodes:
        value = node.attrs.get("value")
        if node.type != "Const" or node.name in ends or node.name not in by_operators:
            continue
        if value is not None and value.numel() <= _SMALL:
            found[node.name] = str(value.tolist())
    return found


def _box(node: Node, infos: Mapping[Source, TensorInfo], values: Mapping[str, str]) -> Box:
    kind = _kind(node)
    inputs = tuple(
        Port(name, values.get(source.node) or tensor_text(infos.get(source)), source)
        for name, source in node.inputs.items()
    )
    title, subtitle = node.type, node.name if node.name != node.type else ""
    if kind == DATA:
        title, subtitle = node.name, f"{node.type} {node.attrs.get('index', 0)}"
    return Box(
        name=node.name,
        kind=kind,
        title=title,
        subtitle=subtitle,
        inputs=inputs,
        outputs=tuple(Port(f"{i}", tensor_text(info)) for i, info in enumerate(node.outputs)),
        attrs={
            name: show_value(value)
            for name, value in sorted(node.attrs.items())
            if not name.startswith("_")
        },
        rows=kind == FUSED
        or len(inputs) > 1
        or any(source.node in values for source in node.inputs.values()),
    )


def _kind(node: Node) -> str:
    if node.type == FUSED_TYPE:
        return FUSED
    if node.type in DATA_TYPES:
        return DATA
    return {"Const": CONST, "NetOutput": OUTPUT}.get(node.type, OP)
