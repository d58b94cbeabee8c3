"""A graph made ready to run, and computed node by node on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from npu_lowering.offdevice.engine import kernels, rules
from npu_lowering.offdevice.engine.call import Call
from npu_lowering.offdevice.engine.graph import (
    DATA_TYPES,
    Graph,
    GraphError,
    Node,
    Source,
    TensorInfo,
)
from npu_lowering.operators.operator import dtype_name

# Nodes the engine sees to itself: what enters the graph and what leaves it.
_ENDS = (*DATA_TYPES, "NetOutput")


class Program:
    """A graph made ready to run: nodes ordered, kernels found, lifetimes known."""

    def __init__(self, model: Graph) -> None:
        _refuse_unknown(model)
        self.graph = model
        self._order = _topological(model)
        self._dies_after = _last_uses(self._order, model.outputs)
        self._constants: dict[Source, torch.Tensor] = {}
        for node in self._order:
            if node.type == "Const":
                self._constants[Source(node.name, 0)] = _constant(node)
            rules.check_attributes(node)

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        assigned: Sequence[torch.Tensor | None] = (),
    ) -> list[torch.Tensor]:
        """Compute the graph.

        Args:
            inputs: CPU tensors, by the index of the Data nodes.
            assigned: For each output, a tensor to write it to, or None.

        Returns:
            Fresh, contiguous tensors, except where one was assigned.

        Raises:
            GraphError: An input does not fit its Data node, a node breaks a rule of the device, or
                a kernel gave something other than the model promises.
        """
        values: dict[Source, torch.Tensor] = dict(self._constants)
        for node, value in zip(self.graph.inputs, _fed(self.graph, inputs)):
            _check_promise(node, 0, value)
            values[Source(node.name, 0)] = value
        caller = frozenset(_storage(values[Source(n.name, 0)]) for n in self.graph.inputs)
        constant = frozenset(_storage(value) for value in self._constants.values())
        for step, node in enumerate(self._order):
            if node.type not in _ENDS and node.type != "Const":
                self._compute(node, values, caller)
            for source in self._dies_after[step]:
                values.pop(source, None)
        results = [values[source] for source in self.graph.outputs]
        return _hand_over(self.graph, results, assigned, caller | constant)

    def _compute(
        self,
        node: Node,
        values: dict[Source, torch.Tensor],
        caller: frozenset[int],
    ) -> None:
        call = Call(
            node, {name: values[source] for name, source in node.inputs.items()}, _in(caller)
        )
        rules.check_call(call)
        try:
            results = kernels.KERNELS[node.type].function(call)
        except GraphError as error:
            raise GraphError(f"node {node.name!r} ({node.type}): {error}") from error
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            got = ", ".join(
                f"{name}: {dtype_name(value.dtype)}{list(value.shape)}"
                for name, value in call.inputs.items()
            )
            raise GraphError(
                f"node {node.name!r} ({node.type}) cannot be computed from {got}: {error}"
            ) from error
        listed = (results,) if isinstance(results, torch.Tensor) else tuple(results)
        if len(listed) < len(node.outputs):
            raise GraphError(
                f"node {node.name!r} ({node.type}) has {len(node.outputs)} outputs, and its "
                f"kernel here gives {len(listed)}"
            )
        for index, value in enumerate(listed[: len(node.outputs)]):
            _check_promise(node, index, value)
            if not kernels.KERNELS[node.type].in_place and _storage(value) in caller:
                # A later node may write the caller's tensor in place; this value is of before.
                value = value.clone()
            values[Source(node.name, index)] = value


def _refuse_unknown(model: Graph) -> None:
    unknown: dict[str, list[str]] = {}
    for node in model.nodes:
        if node.type not in _ENDS and node.type != "Const" and node.type not in kernels.KERNELS:
            unknown.setdefault(node.type, []).append(node.name)
    if unknown:
        listed = "; ".join(f"{name} (nodes {', '.join(nodes)})" for name, nodes in unknown.items())
        raise GraphError(
            f"graph {model.name!r} has {len(unknown)} GE operators that the CPU engine cannot "
            f"compute: {listed}; npu_lowering.offdevice.lower(function, *args) gives the graph "
            "without running it"
        )


def _topological(model: Graph) -> list[Node]:
    """Nodes in an order that can be computed; otherwise in that of the model.

    The model's own order is the program's, which matters where a tensor is read before it is
    written in place.
    """
    waiting = {node.name: node for node in model.nodes}
    order: list[Node] = []
    for node in model.nodes:
        stack = [node]
        entered: set[str] = set()
        while stack:
            top = stack[-1]
            if top.name not in waiting:
                stack.pop()
                continue
            needs = [s.node for s in top.inputs.values()] + list(top.control)
            open_needs = [name for name in needs if name in waiting]
            if not open_needs:
                order.append(waiting.pop(top.name))
                stack.pop()
            elif top.name in entered:
                loop = [n.name for n in stack if n.name in entered]
                raise GraphError(f"graph {model.name!r} has a cycle through {', '.join(loop)}")
            else:
                entered.add(top.name)
                stack += [waiting[name] for name in reversed(open_needs)]
    return order


def _last_uses(order: Sequence[Node], kept: Sequence[Source]) -> list[list[Source]]:
    last: dict[Source, int] = {}
    for step, node in enumerate(order):
        for index in range(len(node.outputs)):
            last[Source(node.name, index)] = step
        for source in node.inputs.values():
            last[source] = step
    dies: list[list[Source]] = [[] for _ in order]
    for source, step in last.items():
        if source not in kept:
            dies[step].append(source)
    return dies


def _constant(node: Node) -> torch.Tensor:
    value = node.attrs.get("value")
    if not isinstance(value, torch.Tensor):
        raise GraphError(f"node {node.name!r} (Const) has no tensor in its attribute 'value'")
    return value


def _fed(model: Graph, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """The caller's tensors, each as its Data node declares it."""
    if len(inputs) != len(model.inputs):
        raise GraphError(
            f"graph {model.name!r} has {len(model.inputs)} inputs, {len(inputs)} were given"
        )
    fed: list[torch.Tensor] = []
    for node, value in zip(model.inputs, inputs):
        if not isinstance(value, torch.Tensor):
            raise GraphError(f"input {node.name!r} must be a tensor, got {type(value).__name__}")
        info = node.outputs[0]
        if info.shape == () and value.shape == (1,) and info.placement == "CPU":
            # A number of the program (a SymInt, a SymFloat), which TorchAIR boxes as numpy does.
            value = value.reshape(()).to(info.dtype)
        fed.append(value.detach())
    return fed


def _check_promise(node: Node, index: int, value: torch.Tensor) -> None:
    """Hold a tensor to its descriptor's dtype and shape."""
    info = node.outputs[index]
    if info.dtype not in (None, value.dtype) or not _shape_fits(node, info, value):
        got = f"{dtype_name(value.dtype)}{list(value.shape)}"
        raise GraphError(
            f"output {index} of node {node.name!r} ({node.type}) must be {info}, got {got}"
        )


def _shape_fits(node: Node, info: TensorInfo, value: torch.Tensor) -> bool:
    if info.shape is None:
        return True
    known = [dim for dim in info.shape if isinstance(dim, int) and dim >= 0]
    if len(info.shape) == value.dim() and all(
        dim == size or dim not in known for dim, size in zip(info.shape, value.shape)
    ):
        return True
    # TorchAIR leaves the meta of a view on the tensor viewed where it builds the view later; the
    # elements are the same then, and only their arrangement differs.
    symbolic = len(known) < len(info.shape)
    return node.type not in DATA_TYPES and (symbolic or prod(known) == value.numel())


def _storage(tensor: torch.Tensor) -> int:
    # Two empty tensors share the address 0 and nothing else.
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _in(caller: frozenset[int]) -> Any:
    return lambda tensor: _storage(tensor) in caller


def _hand_over(
    model: Graph,
    results: Sequence[torch.Tensor],
    assigned: Sequence[torch.Tensor | None],
    owned: frozenset[int],
) -> list[torch.Tensor]:
    """Give each output memory of its own, and only then write the assigned ones."""
    if assigned and len(assigned) != len(results):
        raise GraphError(
            f"graph {model.name!r} has {len(results)} outputs, {len(assigned)} were assigned"
        )
    taken = set(owned)
    fresh: list[torch.Tensor] = []
    for value in results:
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        if _storage(value) in taken or not whole or not value.is_contiguous():
            value = value.clone(memory_format=torch.contiguous_format)
        taken.add(_storage(value))
        fresh.append(value)
    for index, target in enumerate(assigned):
        if target is not None:
            fresh[index] = target.copy_(fresh[index])
    return fresh
