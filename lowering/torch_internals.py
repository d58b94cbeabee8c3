"""Every private name of torch that this package uses, with what it is used for.

When a release of torch moves one of them, this is the one place to look.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

tree_flatten = torch.utils._pytree.tree_flatten
"""Leaves and structure of nested lists, tuples and dicts."""
tree_unflatten = torch.utils._pytree.tree_unflatten
"""The reverse."""

below_autograd: Any = torch._C._AutoDispatchBelowAutograd
"""A context in which the dispatcher passes autograd by."""


SingleLevelFunction: Any = torch.autograd.function._SingleLevelFunction
"""torch.autograd.Function inside a kernel, where torch.func has already peeled off its level."""


def applied(function: Any, *args: Any) -> Any:
    """Apply a :data:`SingleLevelFunction`, which torch.func allows by name only."""
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    from torch._functorch.utils import enable_single_level_autograd_function

    with enable_single_level_autograd_function():
        return function.apply(*args)


@contextlib.contextmanager
def outer_levels_record() -> Iterator[None]:
    """Turns back on what a Function's forward turns off: outer levels of torch.func need it."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor is a dual one, of forward-mode differentiation or of torch.func.jvp."""
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return False
    return torch._VF._unpack_dual(tensor, level=0)[1] is not None


def is_fake(value: object) -> bool:
    """Whether a value is a tensor of FakeTensorMode."""
    return isinstance(value, FakeTensor)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory, and what is done with it is done at once and not recorded."""
    return (
        not is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and torch._C._has_storage(tensor)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def is_compiling() -> bool:
    """Whether Dynamo is tracing the caller."""
    return torch.compiler.is_dynamo_compiling()


def is_tracing() -> bool:
    """Whether Dynamo or torch.export is tracing the caller."""
    return torch.compiler.is_compiling()


def is_data_dependent(size: Any) -> bool:
    """Whether a size is a symbol that only data knows, so that nothing may branch on it."""
    return isinstance(size, torch.SymInt) and not is_compiling() and not size.node.has_hint()


def bounds(size: Any) -> tuple[int, int | None]:
    """The least and the largest value that a symbolic size may have; None where there is none.

    What torch knows of each symbol, and what the guards that were taken so far say of it.
    """
    if not isinstance(size, torch.SymInt):
        return int(size), int(size)
    import sympy
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    node = size.node
    ranges = {symbol: node.shape_env.bound_sympy(symbol) for symbol in node.expr.free_symbols}
    for guard in node.shape_env.guards:
        together = isinstance(guard.expr, sympy.And)
        for relation in guard.expr.args if together else (guard.expr,):
            symbol, limit = [*getattr(relation, "args", ()), None, None][:2]
            if symbol in ranges and getattr(limit, "is_Integer", False):
                if isinstance(relation, sympy.Le):
                    ranges[symbol] &= ValueRanges(0, limit)
                elif isinstance(relation, sympy.Ge):
                    ranges[symbol] &= ValueRanges(limit, ranges[symbol].upper)
    found = bound_sympy(node.expr, ranges)
    lower = int(found.lower) if found.lower.is_Integer else 0
    return max(lower, 0), int(found.upper) if found.upper.is_Integer else None


def allow_in_graph(function: Any) -> Any:
    """Makes a call of a function one call in Dynamo's graph."""
    return torch._dynamo.allow_in_graph(function)


def is_autocasting() -> bool:
    """Whether autocast is on, for any device."""
    return bool(torch._C._is_any_autocast_enabled())


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keeps autocast from rounding the sums of a matmul to its own dtype."""
    if device.type == "meta" or not is_autocasting():
        return contextlib.nullcontext()
    if device.type == torch._C._get_privateuse1_backend_name() and not _autocasts(device.type):
        # A device of someone else's may have no autocast at all, and then no way to turn it off.
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _autocasts(device_type: str) -> bool:
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # pragma: no cover -- before torch 2.4 it asks of CUDA alone
        return True


def hide_from_dynamo(function: Any) -> Any:
    """Keeps Dynamo from compiling a function and all that it calls, where it has skipped a frame.

    By a mark on its code, which costs a call nothing and imports no Dynamo; torch before 2.8 has
    no such mark, and there a wrapper does it once Dynamo is imported.
    """
    from torch._C._dynamo import eval_frame

    if hasattr(eval_frame, "set_code_exec_strategy"):
        skip = eval_frame._FrameAction.SKIP
        strategy = eval_frame._FrameExecStrategy(skip, skip)
        eval_frame.set_code_exec_strategy(function.__code__, strategy)
        return function

    @functools.wraps(function)
    def hidden(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        return torch._dynamo.disable(function)(*args, **kwargs)

    return hidden


# The dispatcher


def overloads_of(name: str) -> list[str]:
    """The overloads of an operator that have a schema; ``""`` is the default one."""
    return [schema.overload_name for schema in torch._C._jit_get_schemas_for_operator(name)]


def operator_names(namespace: str) -> Iterator[str]:
    """Names, with their overloads, of the operators of a namespace that have a schema."""
    for name in torch._C._dispatch_get_all_op_names():
        operator, _, overload = name.partition(".")
        if operator.startswith(f"{namespace}::") and overload in overloads_of(operator):
            yield name


def has_kernel(name: str, key: str) -> bool:
    """Whether an operator has a kernel of its own for a dispatch key."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def finds_kernel(name: str, key: str) -> bool:
    """Whether an operator has a kernel for a dispatch key, be it a composite or a fallback."""
    return bool(torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, key))


def forget_kernel(name: str, key: str) -> None:
    """Let a Python kernel be replaced: torch before 2.6 refuses a second one by a table alone."""
    torch.library._impls.discard(f"{name.replace('::', '/')}/{key}")


def destroy(library: torch.library.Library) -> None:
    """Take back all that a library has put into the dispatcher."""
    if hasattr(library, "_destroy"):
        library._destroy()
    else:  # pragma: no cover -- torch 2.1, where the C++ handle's own destructor does it
        torch.library._impls.difference_update(library._op_impls)
        library.m = None


def forget_signature(name: str, overload: str) -> None:
    """FX keeps signatures by name, and whoever defines the operator next may give it another."""
    cache = getattr(torch.fx.operator_schemas, "_SCHEMA_TO_SIGNATURE_CACHE", {})
    cache.pop((name, overload), None)


def int_mm(x: Tensor, w: Tensor) -> Tensor:
    """int32 ``x @ w`` of int8 matrices whose rows lie at least their length apart."""
    return torch._int_mm(x, w)
