"""Attention while a graph is traced for an NPU."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from npu_lowering.offdevice.process import plain

# Where TorchAIR and npugraph_ex hand a model of Dynamo's to AOTAutograd, which chooses.
_TRACING = ("torchair.npu_fx_compiler", "torchair.inference._cache_compiler")
_LAZY = "npugraph_ex"
_chosen: list[Any] = []
_FUNCTIONS = ("aot_module_simplified", "aot_module_simplified_joint")


def choose_what_lowers() -> None:
    """Let scaled_dot_product_attention be traced as standard operators.

    Of CPU tensors torch would choose its CPU flash operator, which no NPU chooses and for which
    there is no converter. Eager calls, and graphs for other backends, are left alone.
    """
    for name in _TRACING:
        try:
            module = importlib.import_module(name)
        except ImportError:  # of another release
            continue
        _choose(module)
    if _LAZY in sys.modules:  # pragma: no branch -- newer releases
        # Imported where it is first used, and not before: it stays to the end of the process.
        lazy = type(sys.modules[_LAZY])
        setattr(lazy, "__getattr__", _choosing(lazy.__getattr__))  # noqa: B010 -- for mypy


def _choosing(get: Callable[..., Any]) -> Callable[..., Any]:
    """An access to an attribute, of which the first imports the module."""

    @functools.wraps(get)
    def getting(self: Any, name: str) -> Any:
        with plain.signals_kept():
            value = get(self, name)
        compiler = sys.modules.get(f"{_LAZY}.npu_fx_compiler")
        if compiler is not None and compiler not in _chosen:
            _choose(compiler)
        return value

    return getting


def _choose(module: Any) -> None:
    _chosen.append(module)
    for function in _FUNCTIONS:
        if hasattr(module, function):
            setattr(module, function, _without_flash(getattr(module, function)))


def _without_flash(trace: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(trace)
    def tracing(*args: Any, **kwargs: Any) -> Any:
        with _math_only():
            return trace(*args, **kwargs)

    return tracing


@contextlib.contextmanager
def _math_only() -> Iterator[None]:
    settings = torch.backends.cuda  # torch's, of every device
    flash, math = settings.flash_sdp_enabled(), settings.math_sdp_enabled()
    settings.enable_flash_sdp(False)
    settings.enable_math_sdp(True)
    try:
        yield
    finally:
        settings.enable_flash_sdp(flash)
        settings.enable_math_sdp(math)
