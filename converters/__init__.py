"""The GE graph converter of the operator, registered with TorchAIR when this is imported."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from npu_lowering.operators.grouped_matmul_finalize_routing import contract
from npu_lowering.registration import op

_INSTALL = (
    "npu_lowering.converters needs TorchAIR, which is part of torch_npu, and it is not importable "
    "({error}). On a device import torch_npu first. Elsewhere pip install 'npu-lowering[offdevice]'"
    " and call npu_lowering.offdevice.install() first."
)


def register() -> None:
    """Make TorchAIR lower the operator by ours; calling it again changes nothing.

    What ours does not cover, weights other than int8, goes on to the converter that was there.

    Raises:
        ImportError: TorchAIR is not importable in this process.
    """
    try:
        # TorchAIR imports its own converters at the first look-up of an operator that has none,
        # which would put them over ours. So they come first.
        from torchair._ge_concrete_graph.fx2ge_converter import register_fx_node_ge_converter
        from torchair._ge_concrete_graph.ge_converter import custom  # noqa: F401

        from npu_lowering.converters.grouped_matmul_finalize_routing import convert
    except ImportError as error:
        raise ImportError(_INSTALL.format(error=error)) from error

    upstream = getattr(op(), "_ge_converter", None)
    if upstream is None or inspect.unwrap(upstream) is not convert:
        register_fx_node_ge_converter(op())(_with_fallback(convert, upstream))


def _with_fallback(ours: Any, upstream: Any) -> Any:
    """Ours where it covers the call; where it does not, upstream's if there is one."""
    original = None if upstream is None else inspect.unwrap(upstream)

    @functools.wraps(ours)
    def converter(x: Any, w: Any, group_list: Any, **kwargs: Any) -> Any:
        call = {name: value for name, value in kwargs.items() if name != "meta_outputs"}
        if original is not None and not contract.is_covered(w.meta, call):
            return original(x, w, group_list, **kwargs)
        for name, value in call.items():
            if name not in contract.ARGUMENTS and kwargs.pop(name) is not None:  # of a newer schema
                contract.refuse_later(name, getattr(value, "meta", value))
        return ours(x, w, group_list, **kwargs)

    return converter


register()

__all__ = ["register"]
