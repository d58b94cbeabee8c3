"""What TorchAIR gave the graph engine, parsed once into values that do not change.

TorchAIR hands over a serialised ``ge.proto.ModelDef``. Its conventions, as read from the builders
in ``torchair.ge._ge_graph`` and ``torchair._ge_concrete_graph.compat_ir``:

* an input is ``node:index``, a control edge ``node:-1`` and has no descriptor; an optional input
  that is not given is left out, or is an empty string whose descriptor says ``_is_unfed_optional``;
* the name of an input is in its descriptor, so order says nothing;
* an attribute equal to the default of its operator may be left out;
* the dtype of an output is meaningful only where its descriptor carries ``_meta``;
* descriptors count dtypes as the proto does, attributes as GE does: two different enums.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from npu_lowering.operators.operator import dtype_name

FUSED_TYPE = "GroupedMatmulFinalizeRouting"
DATA_TYPES = ("Data", "RefData")

_TORCH_DTYPES = {
    "DT_FLOAT": "float32",
    "DT_FLOAT16": "float16",
    "DT_INT8": "int8",
    "DT_UINT8": "uint8",
    "DT_INT16": "int16",
    "DT_UINT16": "uint16",
    "DT_INT32": "int32",
    "DT_INT64": "int64",
    "DT_UINT32": "uint32",
    "DT_UINT64": "uint64",
    "DT_BOOL": "bool",
    "DT_DOUBLE": "float64",
    "DT_COMPLEX64": "complex64",
    "DT_COMPLEX128": "complex128",
    "DT_BF16": "bfloat16",
    "DT_COMPLEX32": "complex32",
    "DT_FLOAT8_E5M2": "float8_e5m2",
    "DT_FLOAT8_E4M3FN": "float8_e4m3fn",
}
# GE's own numbers, the ones attributes hold (``dst_type`` of Cast, ``_output_dtypes``).
_GE_CODES = dict(enumerate(("DT_FLOAT", "DT_FLOAT16", "DT_INT8", "DT_INT32", "DT_UINT8")))
_GE_CODES |= dict(enumerate(("DT_INT16", "DT_UINT16", "DT_UINT32", "DT_INT64", "DT_UINT64"), 6))
_GE_CODES |= {11: "DT_DOUBLE", 12: "DT_BOOL", 16: "DT_COMPLEX64", 17: "DT_COMPLEX128"}
_GE_CODES |= {27: "DT_BF16", 29: "DT_INT4", 33: "DT_COMPLEX32"}
_GE_CODES |= {35: "DT_FLOAT8_E5M2", 36: "DT_FLOAT8_E4M3FN"}
_META = re.compile(r"shape=(?:torch\.Size\()?\[([^\]]*)\]")


class GraphError(RuntimeError):
    """The model cannot be read, compiled or run; the message says which node and why."""


def torch_dtype(name: str) -> torch.dtype | None:
    """The torch dtype of a GE dtype's name, None where this torch has none."""
    dtype = getattr(torch, _TORCH_DTYPES.get(name, ""), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def ge_codes() -> dict[torch.dtype, int]:
    """GE's number of each dtype that torch has, too."""
    named = {torch_dtype(name): code for code, name in _GE_CODES.items()}
    return {dtype: code for dtype, code in named.items() if dtype is not None}


def ge_code_to_dtype(code: int) -> torch.dtype:
    """The torch dtype of a GE dtype number, as attributes hold it.

    Raises:
        GraphError: The number is unknown, or torch has no such dtype.
    """
    name = _GE_CODES.get(code)
    if name is None:
        raise GraphError(f"{code} is not the number of a GE dtype known here")
    dtype = torch_dtype(name)
    if dtype is None:
        raise GraphError(f"{name} has no torch dtype, so it cannot be computed on the CPU")
    return dtype


@dataclass(frozen=True)
class TensorInfo:
    """What a descriptor says of a tensor.

    Attributes:
        name: The name the operator's definition gives this output.
        dtype: None where the model does not say.
        shape: Dimensions; a symbol is kept as text, -1 is unknown; None where the model does not
            say.
        format: The layout, ``ND`` mostly.
        placement: ``CPU``, ``NPU``, or empty where the model does not say.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[Any, ...] | None
    format: str
    placement: str = ""

    def __str__(self) -> str:
        dtype = "?" if self.dtype is None else dtype_name(self.dtype)
        shape = "[?]" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{dtype}{shape}" + (f" {self.format}" if self.format not in ("", "ND") else "")


@dataclass(frozen=True)
class Source:
    """The output of a node that an input reads."""

    node: str
    index: int

    def __str__(self) -> str:
        return f"{self.node}:{self.index}"


@dataclass(frozen=True)
class Node:
    """One operator of the graph.

    Attributes:
        name: Unique in the graph.
        type: The GE operator.
        inputs: Input name of the operator's definition -> what it reads; absent ones are left out.
        control: Nodes that must have run before.
        attrs: Attributes that are given, as Python values; a tensor is a ``torch.Tensor``.
        outputs: One descriptor each.
    """

    name: str
    type: str
    inputs: Mapping[str, Source]
    control: tuple[str, ...]
    attrs: Mapping[str, Any]
    outputs: tuple[TensorInfo, ...]

    def __str__(self) -> str:
        parts = [f"{name}={source}" for name, source in self.inputs.items()]
        parts += [f"after={name}" for name in self.control]
        parts += [
            f"{name}={show_value(value)}"
            for name, value in sorted(self.attrs.items())
            if not name.startswith("_")
        ]
        outputs = ", ".join(map(str, self.outputs)) or "nothing"
        mark = "=> " if self.type == FUSED_TYPE else "   "
        return f"{mark}{self.name} = {self.type}({', '.join(parts)}) -> {outputs}"


@dataclass(frozen=True)
class Graph:
    """A lowered model.

    Attributes:
        name: As TorchAIR named it.
        nodes: In the order of the model.
        inputs: The Data nodes, by their index.
        outputs: What NetOutput reads, in order.
        attrs: Attributes of the graph as a whole.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Source, ...]
    attrs: Mapping[str, Any]

    def nodes_of(self, op_type: str) -> tuple[Node, ...]:
        """The nodes of one GE operator, in the order of the model."""
        return tuple(node for node in self.nodes if node.type == op_type)

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            KeyError: There is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"graph {self.name!r} has no node {name!r}")

    def __str__(self) -> str:
        outputs = ", ".join(map(str, self.outputs))
        return "\n".join([f"graph {self.name}", *map(str, self.nodes), f"   return {outputs}"])


def parse(blob: bytes) -> Graph:
    """Read a serialised ``ModelDef``.

    Args:
        blob: What TorchAIR passes to ``TorchNpuGraphBase.load``.

    Raises:
        GraphError: The model cannot be read, or contradicts itself.
    """
    from google.protobuf.message import DecodeError
    from torchair._ge_concrete_graph import ge_ir_pb2

    model = ge_ir_pb2.ModelDef()
    try:
        model.ParseFromString(blob)
    except DecodeError as error:
        raise GraphError(f"the model is not a serialised ge.proto.ModelDef: {error}") from error
    if len(model.graph) != 1:
        raise GraphError(f"the model must hold one graph, it holds {len(model.graph)}")
    graph = model.graph[0]
    name_of = ge_ir_pb2.DataType.Name
    nodes = tuple(_node(op, name_of) for op in graph.op)
    _check_sources(nodes)
    ends = [node for node in nodes if node.type == "NetOutput"]
    if len(ends) != 1:
        raise GraphError(f"graph {graph.name!r} must have one NetOutput, it has {len(ends)}")
    return Graph(
        name=graph.name,
        nodes=nodes,
        inputs=_by_index(nodes),
        outputs=tuple(ends[0].inputs.values()),
        attrs=_attrs(graph.attr, name_of),
    )


def _node(op: Any, name_of: Any) -> Node:
    try:
        inputs, control = _inputs(op)
        return Node(
            name=op.name,
            type=op.type,
            inputs=MappingProxyType(inputs),
            control=control,
            attrs=_attrs(op.attr, name_of),
            outputs=tuple(_info(desc, op.type, name_of) for desc in op.output_desc),
        )
    except GraphError as error:
        raise GraphError(f"node {op.name!r} ({op.type}): {error}") from error


def _inputs(op: Any) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Pair data inputs with their descriptors; control edges have none and may stand anywhere."""
    edges = [_source(text) if text else None for text in op.input]
    control = tuple(edge.node for edge in edges if edge is not None and edge.index == -1)
    data = [edge for edge in edges if edge is None or edge.index != -1]
    descs = list(op.input_desc)
    if op.type in DATA_TYPES and not data:
        return {}, control  # it describes what the caller feeds
    if len(data) != len(descs):
        raise GraphError(f"it has {len(data)} inputs and {len(descs)} input descriptors")
    inputs: dict[str, Source] = {}
    for edge, desc in zip(data, descs):
        if edge is None:
            if "_is_unfed_optional" not in desc.attr:
                raise GraphError(f"its input {desc.name!r} reads nothing, and is not optional")
        elif desc.name in inputs:
            raise GraphError(f"it has two inputs named {desc.name!r}")
        else:
            inputs[desc.name] = edge
    return inputs, control


def _source(text: str) -> Source:
    name, _, index = text.rpartition(":")
    if not name or not re.fullmatch(r"-1|\d+", index):
        raise GraphError(f"its input {text!r} is not of the form node:index")
    return Source(name, int(index))


def _dtype(code: int, name_of: Any) -> str:
    try:
        return str(name_of(code))
    except ValueError as error:
        raise GraphError(f"{code} is not the number of a dtype of ge.proto") from error


def _info(desc: Any, op_type: str, name_of: Any) -> TensorInfo:
    name = _dtype(desc.dtype, name_of)
    meta = desc.attr["_meta"].s.decode() if "_meta" in desc.attr else None
    said = meta is not None or op_type in (*DATA_TYPES, "Const")
    dims: tuple[Any, ...] | None = None
    if "origin_shape" in desc.attr:
        dims = tuple(desc.attr["origin_shape"].list.i)  # of an input held in a private layout
    elif op_type in (*DATA_TYPES, "Const"):
        dims = tuple(desc.shape.dim)
        dims = None if dims == (-2,) else dims  # -2 alone: even the rank is unknown
    elif meta is not None:
        dims = _meta_shape(meta)
    return TensorInfo(
        name=desc.name,
        dtype=torch_dtype(name) if said else None,
        shape=dims,
        format=desc.layout,
        placement=desc.device_type,
    )


def _meta_shape(meta: str) -> tuple[Any, ...] | None:
    """The shape in TorchAIR's text of a fake tensor; a symbolic scalar has the shape ()."""
    if not meta.startswith("Tensor("):
        return () if "torch.Sym" in meta else None
    found = _META.search(meta)
    if found is None:
        return None
    dims = [dim.strip() for dim in found.group(1).split(",") if dim.strip()]
    return tuple(int(dim) if re.fullmatch(r"\d+", dim) else dim for dim in dims)


def _attrs(attrs: Any, name_of: Any) -> Mapping[str, Any]:
    return MappingProxyType({name: _attr(value, name_of) for name, value in attrs.items()})


def _attr(attr: Any, name_of: Any) -> Any:
    kind = attr.WhichOneof("value")
    if kind is None:
        return None
    if kind == "s":
        return _text(attr.s)
    if kind == "list":
        values = attr.list
        if len(values.s):
            return tuple(_text(value) for value in values.s)
        return tuple(values.i) or tuple(values.f) or tuple(values.b) or tuple(values.dt)
    if kind == "list_list_int":
        return tuple(tuple(row.list_i) for row in attr.list_list_int.list_list_i)
    if kind == "list_list_float":
        return tuple(tuple(row.list_f) for row in attr.list_list_float.list_list_f)
    if kind == "t":
        return _tensor(attr.t, name_of)
    value = getattr(attr, kind)
    return value if isinstance(value, (bool, int, float, bytes)) else str(value)


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _tensor(proto: Any, name_of: Any) -> torch.Tensor:
    """A constant's value: raw bytes, with a dtype and a shape of its own."""
    name = _dtype(proto.desc.dtype, name_of)
    dtype = torch_dtype(name)
    if dtype is None:
        raise GraphError(f"a constant of {name} cannot be held by torch")
    shape = tuple(proto.desc.shape.dim)
    value = torch.empty(shape, dtype=dtype)
    size = value.numel() * value.element_size()
    if len(proto.data) < size:
        raise GraphError(
            f"a constant of {name}{list(shape)} needs {size} bytes, it has {len(proto.data)}"
        )
    if not size:
        return value
    # A bytearray is a copy that may be written, which torch.frombuffer asks for.
    raw = torch.frombuffer(bytearray(proto.data[:size]), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def show_value(value: Any) -> str:
    """An attribute as text; of a large tensor, its dtype and shape."""
    if isinstance(value, torch.Tensor):
        text = str(value.tolist()) if value.numel() <= 8 else f"<{value.numel()} values>"
        return f"{dtype_name(value.dtype)}{list(value.shape)} {text}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return repr(value)


def _check_sources(nodes: tuple[Node, ...]) -> None:
    by_name: dict[str, Node] = {}
    for node in nodes:
        if node.name in by_name:
            raise GraphError(f"two nodes have the name {node.name!r}")
        by_name[node.name] = node
    for node in nodes:
        for source in (*node.inputs.values(), *(Source(name, -1) for name in node.control)):
            if source.node not in by_name:
                raise GraphError(
                    f"node {node.name!r} ({node.type}) reads {source}, and there is no such node"
                )
            outputs = len(by_name[source.node].outputs)
            if source.index >= outputs:
                raise GraphError(
                    f"node {node.name!r} ({node.type}) reads {source}, and that node has "
                    f"{outputs} outputs"
                )


def _by_index(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    data = sorted(
        (node for node in nodes if node.type in DATA_TYPES),
        key=lambda node: int(node.attrs.get("index", 0)),
    )
    indices = [int(node.attrs.get("index", 0)) for node in data]
    if indices != list(range(len(data))):
        raise GraphError(f"the Data nodes must have the indices 0, 1, 2, ...; they have {indices}")
    return tuple(data)
