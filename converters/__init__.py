"""The GE graph converters of the operators, registered with TorchAIR when this is imported."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from npu_lowering.limits import DeviceLimitWarning
from npu_lowering.operators import OPERATORS
from npu_lowering.operators.operator import Operator
from npu_lowering.registration import is_defined

_INSTALL = (
    "npu_lowering.converters needs TorchAIR, which is part of torch_npu, and it is not importable "
    "({error}). On a device import torch_npu first. Elsewhere call npu_lowering.offdevice.install()"
    " first, which says what is not installed."
)


def register() -> None:
    """Make TorchAIR lower the operators by ours; calling it again changes nothing.

    What ours does not cover goes on to the converter that was there.

    Raises:
        ImportError: TorchAIR is not importable in this process.
    """
    try:
        # TorchAIR imports its own converters at the first look-up of an operator that has none,
        # which would put them over ours. So they come first.
        from torchair._ge_concrete_graph.fx2ge_converter import register_fx_node_ge_converter
        from torchair._ge_concrete_graph.ge_converter import custom  # noqa: F401
    except ImportError as error:
        raise ImportError(_INSTALL.format(error=error)) from error

    for operator in OPERATORS:
        if operator.converter is None or not is_defined(operator.qualname):
            continue
        convert = importlib.import_module(operator.converter).convert
        upstream = getattr(operator.overload, "_ge_converter", None)
        if upstream is None or inspect.unwrap(upstream) is not convert:
            converter = _converter(operator, convert, upstream)
            register_fx_node_ge_converter(operator.overload)(converter)


def _converter(operator: Operator, convert: Callable[..., Any], upstream: Any) -> Any:
    """Ours where it covers the call; where it does not, upstream's if there is one.

    Args:
        operator: the record.
        convert: ``(arguments, problem)`` to the GE tensor of each result. arguments are all of the
            operator's, by name, tensors as GE tensors; problem is the checked call of the fake
            tensors that TorchAIR keeps with its own.
        upstream: the converter that was registered, or None.
    """
    original = None if upstream is None else inspect.unwrap(upstream)

    @functools.wraps(convert)
    def converter(*args: Any, meta_outputs: Any = None, **kwargs: Any) -> Any:
        given = operator.by_name(args, kwargs)
        metas = {name: _meta(value) for name, value in given.items()}
        if original is not None and operator.covers is not None and not operator.covers(metas):
            asked = "meta_outputs" in inspect.signature(original).parameters
            extra = {"meta_outputs": meta_outputs} if asked else {}
            return original(*args, **kwargs, **extra)
        problem = operator.problem(**metas)
        if operator.limits is not None:
            for sentence in operator.limits(problem):
                warnings.warn(
                    f"{operator.function or operator.name}: {sentence}",
                    DeviceLimitWarning,
                    stacklevel=2,
                )
        known = operator.signature.parameters
        bound = operator.signature.bind(**{k: v for k, v in given.items() if k in known})
        bound.apply_defaults()
        return convert(bound.arguments, problem)

    # TorchAIR asks the signature whether to pass meta_outputs; that of convert says nothing of it.
    vars(converter)["__signature__"] = inspect.Signature(
        [
            *operator.signature.parameters.values(),
            inspect.Parameter("meta_outputs", inspect.Parameter.KEYWORD_ONLY, default=None),
        ]
    )
    return converter


def _meta(value: Any) -> Any:
    """The fake tensor of a GE tensor, of each in a list; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return [_meta(each) for each in value]
    return value.meta if hasattr(value, "meta") and hasattr(value, "node") else value


register()

__all__ = ["register"]
