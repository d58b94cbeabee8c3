"""What the device asks of the operator's node, held against it before it is computed.

The rules are those of the device's own shape inference and, where that asks nothing and its kernel
would then compute something else, of the kernel. They are metadata only. Sizes the device of a
certain year can tile (k % 16 == 0, n % 32 == 0, n >= 256) are no rules here: the lowering warns of
them, and small models may be run off the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from npu_lowering.offdevice.engine.call import Call
from npu_lowering.offdevice.engine.graph import FUSED_TYPE, GraphError, Node
from npu_lowering.operators.operator import dtype_name

REQUIRED = ("x", "w", "scale", "group_list", "row_index", "logit", "shared_input")
_RANKS = {
    "x": 2,
    "w": 3,
    "scale": 2,
    "bias": 2,
    "pertoken_scale": 1,
    "group_list": 1,
    "shared_input": 2,
    "logit": 1,
    "row_index": 1,
}
_DTYPES = {
    "x": (torch.int8,),
    "w": (torch.int8,),
    "scale": (torch.float32, torch.bfloat16),
    "bias": (torch.bfloat16,),
    "pertoken_scale": (torch.float32,),
    "group_list": (torch.int64,),
    "shared_input": (torch.bfloat16,),
    "logit": (torch.float32,),
    "row_index": (torch.int64, torch.int32),
}


class Rule(NamedTuple):
    """One thing the device asks.

    Attributes:
        name: Short, as a test names it.
        holds: What must be true.
        sentence: What must be, and what came.
    """

    name: str
    holds: Callable[[Any], bool]
    sentence: Callable[[Any], str]


@dataclass(frozen=True)
class Operands:
    """A node's inputs and attributes, as its rules look at them; a missing input is left out."""

    tensors: Mapping[str, torch.Tensor]
    output_bs: int
    shared_input_offset: int

    def size(self, name: str, axis: int) -> int:
        """The size of one axis of an input."""
        return int(self.tensors[name].shape[axis])


def _shape(operands: Operands, name: str) -> str:
    return f"{name} is {tuple(operands.tensors[name].shape)}"


def _given(name: str) -> Rule:
    return Rule(
        f"{name} is given",
        lambda node: name in node.inputs,
        lambda _: f"the input {name} must be given",
    )


def _attribute(name: str, default: Any, allowed: Any, why: str) -> Rule:
    return Rule(
        f"{name} is {allowed}",
        lambda node: bool(node.attrs.get(name, default) == allowed),
        lambda node: f"{name} must be {allowed}, got {node.attrs.get(name, default)}: {why}",
    )


NODE_RULES: tuple[Rule, ...] = (
    *(_given(name) for name in REQUIRED),
    _attribute(
        "group_list_type",
        1,
        1,
        "older kernels read the totals of type 0 as counts, without an error",
    ),
    _attribute("transpose_x", False, False, "no kernel transposes"),
    _attribute("transpose_w", False, False, "no kernel transposes"),
    _attribute("dtype", 0, 0, "0 is float32, the only dtype the output has"),
    Rule(
        "no offset",
        lambda node: "offset" not in node.inputs,
        lambda _: "the input offset belongs to int4 weights, and must not be given with int8 ones",
    ),
    Rule(
        "shared_input_offset is not negative",
        lambda node: int(node.attrs.get("shared_input_offset", 0)) >= 0,
        lambda node: (
            f"shared_input_offset must be 0 or more, got {node.attrs.get('shared_input_offset', 0)}"
        ),
    ),
    Rule(
        "output_bs is positive",
        lambda node: int(node.attrs.get("output_bs", 0)) > 0,
        lambda node: (
            "output_bs must be the number of rows of the output, 1 or more, got "
            f"{node.attrs.get('output_bs', 0)}: for 0 the device infers an output of no rows"
        ),
    ),
)


def _rank(name: str, rank: int) -> Rule:
    return Rule(
        f"rank of {name}",
        lambda o: name not in o.tensors or o.tensors[name].dim() == rank,
        lambda o: f"{name} must have {rank} dimensions, {_shape(o, name)}",
    )


def _dtype(name: str, dtypes: tuple[torch.dtype, ...]) -> Rule:
    listed = " or ".join(dtype_name(dtype) for dtype in dtypes)
    return Rule(
        f"dtype of {name}",
        lambda o: name not in o.tensors or o.tensors[name].dtype in dtypes,
        lambda o: f"{name} must be {listed}, got {dtype_name(o.tensors[name].dtype)}",
    )


def _not_empty(name: str) -> Rule:
    return Rule(
        f"{name} is not empty",
        lambda o: name not in o.tensors or o.tensors[name].numel() > 0,
        lambda o: f"{name} must not be empty, {_shape(o, name)}",
    )


def _sizes(name: str, axis: int, other: str, other_axis: int) -> Rule:
    return Rule(
        f"{name}[{axis}] is {other}[{other_axis}]",
        lambda o: name not in o.tensors or o.size(name, axis) == o.size(other, other_axis),
        lambda o: (
            f"axis {axis} of {name} must be as long as axis {other_axis} of {other}, "
            f"{_shape(o, name)} and {_shape(o, other)}"
        ),
    )


# In this order: a later rule may rely on an earlier one, sizes on ranks.
CALL_RULES: tuple[Rule, ...] = (
    *(_rank(name, rank) for name, rank in _RANKS.items()),
    *(_dtype(name, dtypes) for name, dtypes in _DTYPES.items()),
    *(_not_empty(name) for name in _RANKS),
    _sizes("w", 1, "x", 1),
    _sizes("scale", 0, "w", 0),
    _sizes("scale", 1, "w", 2),
    # Shape inference leaves bias alone, and the kernel then reads past it.
    _sizes("bias", 0, "w", 0),
    _sizes("bias", 1, "w", 2),
    _sizes("pertoken_scale", 0, "x", 0),
    _sizes("group_list", 0, "w", 0),
    _sizes("shared_input", 1, "w", 2),
    _sizes("logit", 0, "x", 0),
    _sizes("row_index", 0, "x", 0),
    Rule(
        "output_bs is at most m",
        lambda o: o.output_bs <= o.size("x", 0),
        lambda o: f"output_bs must be at most the rows of x, {o.size('x', 0)}, got {o.output_bs}",
    ),
    Rule(
        "shared_input fits",
        lambda o: o.shared_input_offset + o.size("shared_input", 0) <= o.output_bs,
        lambda o: (
            f"shared_input_offset {o.shared_input_offset} and the {o.size('shared_input', 0)} rows "
            f"of shared_input must end within output_bs, {o.output_bs}"
        ),
    ),
)


def check_attributes(node: Node) -> None:
    """Hold a node to what can be told before there are tensors.

    Raises:
        GraphError: It breaks a rule; the message names the node and the rule.
    """
    if node.type == FUSED_TYPE:
        _apply(NODE_RULES, node, node)


def check_call(call: Call) -> None:
    """Hold a node to what its tensors must be.

    Raises:
        GraphError: It breaks a rule; the message names the node and the rule.
    """
    if call.node.type == FUSED_TYPE:
        operands = Operands(
            tensors=call.inputs,
            output_bs=int(call.attr("output_bs", 0)),
            shared_input_offset=int(call.attr("shared_input_offset", 0)),
        )
        _apply(CALL_RULES, operands, call.node)


def _apply(rules: tuple[Rule, ...], subject: Any, node: Node) -> None:
    for rule in rules:
        if not rule.holds(subject):
            raise GraphError(
                f"node {node.name!r} ({node.type}) breaks the device's rule {rule.name!r}: "
                f"{rule.sentence(subject)}"
            )
