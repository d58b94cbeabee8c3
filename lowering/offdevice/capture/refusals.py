"""What a device refuses while work is captured, said in a sentence.

Between ``aclmdlRICaptureBegin`` and ``aclmdlRICaptureEnd`` nothing runs, so the host cannot be told
a number: a stream that is captured cannot be synchronised (CANN's error 107027, as .item() has it),
and memory cannot be copied to or from the host before the next call (107030 for aclrtMemcpy, which
CANN's documents list with aclrtMemset under ACL_MODEL_RI_CAPTURE_MODE_GLOBAL).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from npu_lowering.offdevice.capture import state


class CaptureError(RuntimeError):
    """Something that a device refuses while it captures, or of what it captured."""


_NOTHING_RUNS = (
    "while an NPU graph is captured nothing is computed, so there is no value to give to the host "
    "(a device refuses to synchronise a captured stream). Do it before or after the capture, or "
    "compute with the tensor on the device"
)


def needs_value(what: str) -> Exception:
    """The error of what wants to know a number."""
    return state.failed(CaptureError(f"{what} during capture: {_NOTHING_RUNS}"))


def needs_shape(operator: str) -> Exception:
    """The error of an operator whose result has a shape that depends on values."""
    return state.failed(
        CaptureError(
            f"{operator} during capture: the shape of its result depends on values, and "
            f"{_NOTHING_RUNS}"
        )
    )


def synchronises(what: str) -> Exception:
    """The error of what waits for the device."""
    return state.failed(
        CaptureError(
            f"{what} during capture: a captured stream cannot be synchronised, since its work only "
            "runs when the graph is replayed. Call it before or after the capture"
        )
    )


@contextlib.contextmanager
def host_reads_refused(mode: str) -> Iterator[None]:
    """Refuse what gives values to the host without a call that torch dispatches.

    Only as long as it is entered are torch's functions replaced, so that compiled code and its
    guards never see it.

    Args:
        mode: ``capture_error_mode``: in ``"global"`` other threads are refused as well.
    """
    capturing = threading.get_ident()

    def concerns_us() -> bool:
        return mode == "global" or threading.get_ident() == capturing

    def refusing(what: str) -> Callable[[Any], Any]:
        def wrap(function: Any) -> Any:
            @functools.wraps(function)
            def refuse(*args: Any, **kwargs: Any) -> Any:
                if concerns_us() and is_plain(args[0]):
                    raise needs_value(what)
                return function(*args, **kwargs)

            return refuse

        return wrap

    def moving(to: Any) -> Any:
        @functools.wraps(to)
        def move(self: Any, *args: Any, **kwargs: Any) -> Any:
            target = kwargs.get("device", args[0] if args else None)
            is_host = isinstance(target, (str, torch.device)) and str(target).startswith("cpu")
            waits = not kwargs.get("non_blocking", False)
            if is_host and waits and concerns_us() and is_plain(self):
                raise needs_value('Tensor.to("cpu")')
            return to(self, *args, **kwargs)

        return move

    def making(name: str) -> Callable[[Any], Any]:
        def wrap(function: Any) -> Any:
            @functools.wraps(function)
            def make(*args: Any, **kwargs: Any) -> Any:
                if concerns_us() and str(kwargs.get("device", "")).startswith("npu"):
                    raise state.failed(
                        CaptureError(
                            f"torch.{name}(..., device={str(kwargs['device'])!r}) during capture: "
                            "it copies from the host and waits for the copy, which a device "
                            "refuses (aclrtMemcpy). Make the tensor before the capture"
                        )
                    )
                return function(*args, **kwargs)

            return make

        return wrap

    replaced: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (torch.Tensor, "tolist", refusing("Tensor.tolist()")),
        (torch.Tensor, "numpy", refusing("Tensor.numpy()")),
        (torch.Tensor, "__array__", refusing("numpy.asarray(tensor)")),
        (torch.Tensor, "cpu", refusing("Tensor.cpu()")),
        (torch.Tensor, "to", moving),
        *((torch, name, making(name)) for name in ("tensor", "as_tensor", "asarray")),
    ]
    kept = [(owner, name, vars(owner).get(name)) for owner, name, _ in replaced]
    for owner, name, wrap in replaced:
        setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, original in kept:
            if original is None:
                delattr(owner, name)  # torch.Tensor had it from its base
            else:
                setattr(owner, name, original)


def is_plain(tensor: Any) -> bool:
    """Whether something is a tensor with memory, and no stand-in of a tracer."""
    dispatch = getattr(type(tensor), "__torch_dispatch__", None)
    return isinstance(tensor, torch.Tensor) and dispatch is torch.Tensor.__torch_dispatch__
