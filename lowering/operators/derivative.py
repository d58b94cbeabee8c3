"""What autograd does with an operator: its formula, or a refusal that names it.

Without a kernel under Autograd, a CPU kernel made of torch ops would be silently differentiable
through its own internals, which the device's operator is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.operators.operator import Operator
from npu_lowering.torch_internals import (
    SingleLevelFunction,
    applied,
    below_autograd,
    has_tangent,
    outer_levels_record,
    tree_flatten,
    tree_unflatten,
)


def kernel(operator: Operator) -> Callable[..., Any]:
    """The kernel of an operator under the key Autograd."""

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = list(_tensors((*args, *kwargs.values())))
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        wanted = _has_tangents(operator, tensors) or wanted
        if not wanted:
            with below_autograd():
                return operator.overload(*args, **kwargs)
        call = operator.by_name(args, kwargs)
        leaves, structure = tree_flatten(call)
        # Tensors are what autograd sees, so they are passed one by one.
        result = applied(_Function, operator, structure, *leaves)
        if operator.returns == "()":
            return None
        return list(result) if operator.returns == "Tensor[]" else result

    return run


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors among arguments, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (each for each in value if isinstance(each, Tensor))


def _has_tangents(operator: Operator, tensors: list[Tensor]) -> bool:
    """Whether forward mode is on, for a formula that has it.

    Raises:
        NotImplementedError: it is on, and dropping a tangent would be a silent derivative of zero.
    """
    dual = any(tensor.is_floating_point() and has_tangent(tensor) for tensor in tensors)
    if dual and (operator.derivative is None or operator.derivative.forward is None):
        raise NotImplementedError(
            f"forward-mode differentiation of {operator.name} is not supported, "
            "got a dual tensor; use backward"
        )
    return dual


REFUSAL = "no_derivative(Tensor grad, Tensor input, str operator) -> Tensor"
"""An operator of ours, so that a compiled program, too, refuses a gradient only where it is asked
for: tracing a function with its backward puts this into the graph and runs nothing. It takes a
gradient, so that no compiler moves it into the forward graph."""


def refuse(grad: Tensor, input: Tensor, operator: str) -> Tensor:  # noqa: A002, ARG001 -- the schema's
    """The kernel of :data:`REFUSAL`."""
    raise RuntimeError(
        f"{operator} has no derivative, and an input of it requires one: call it under "
        "torch.no_grad(), or on detached tensors"
    )


def refuse_fake(grad: Tensor, input: Tensor, operator: str) -> Tensor:  # noqa: A002, ARG001
    """What the gradient would look like."""
    return torch.empty_like(input)


class _Function(SingleLevelFunction):  # type: ignore[misc]
    """Ties a record's formula, or its lack of one, to the operator."""

    @staticmethod
    def forward(operator: Operator, structure: Any, *leaves: Any) -> Any:
        call = tree_unflatten(list(leaves), structure)
        with outer_levels_record(), below_autograd():
            result = operator.overload(**call)
        if operator.returns == "()":
            return tuple(_written(operator, call))
        return tuple(result) if isinstance(result, list) else result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        operator, structure, *leaves = inputs
        ctx.set_materialize_grads(False)
        ctx.operator, ctx.structure = operator, structure
        ctx.rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        # What the schema says is written depends on the other arguments from here on.
        ctx.mark_dirty(*_written(operator, tree_unflatten(list(leaves), structure)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        operator: Operator = ctx.operator
        assert operator.derivative is not None
        assert operator.derivative.forward is not None
        call = _call(ctx)
        given = tree_unflatten(list(tangents[2:]), ctx.structure)
        known = {
            name: given[name]
            for name in operator.derivative.inputs
            if isinstance(given.get(name), Tensor)
        }
        return operator.derivative.forward(operator.overload, operator.problem(**call), known)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        operator: Operator = ctx.operator
        call = _call(ctx)
        if operator.derivative is None:
            asked = next(grad for grad in grads if grad is not None)
            refused = [
                torch.ops.npu_lowering.no_derivative(asked, leaf, operator.name) if needed else None
                for leaf, needed in zip(tree_flatten(call)[0], ctx.needs_input_grad[2:])
            ]
            return (None, None, *refused)
        needed = tree_unflatten(list(ctx.needs_input_grad[2:]), ctx.structure)
        differentiable = frozenset(operator.derivative.inputs)
        wanted = frozenset(name for name in differentiable & call.keys() if needed[name] is True)
        found = operator.derivative.backward(
            operator.overload, operator.problem(**call), grads, wanted
        )
        result = {
            name: found[name].to(call[name].dtype).reshape(call[name].shape) for name in wanted
        }
        return (None, None, *_as_leaves(call, result))


def _call(ctx: Any) -> dict[str, Any]:
    """The arguments that forward had, by name."""
    saved = iter(ctx.saved_tensors)
    leaves = [
        next(saved) if is_tensor else leaf for is_tensor, leaf in zip(ctx.is_tensor, ctx.rest)
    ]
    call: dict[str, Any] = tree_unflatten(leaves, ctx.structure)
    return call


def _written(operator: Operator, call: dict[str, Any]) -> list[Tensor]:
    """What the schema says is written."""
    return [call[name] for name in operator.written if name not in operator.writes]


def _as_leaves(call: dict[str, Any], found: dict[str, Tensor]) -> list[Tensor | None]:
    """Gradients in the order of the leaves of a call."""
    leaves: list[Tensor | None] = []
    for name, value in call.items():
        count = len(tree_flatten(value)[0])
        leaves.extend([found[name]] if name in found else [None] * count)
    return leaves
