"""Whether kernels look at the values of indices and counts before they use them.

On the CPU they always do: a wrong index there is a read or write out of bounds. Elsewhere looking
waits for the device, once a call, which :func:`check_values` or the environment variable
``NPU_LOWERING_CHECK_VALUES=0`` leaves out. A wrong index is then whatever the device makes of it.
A kernel that slices by counts has to know them all the same: those of ``npu_grouped_matmul`` and
its kin, the fused operator apart, and of attention wait at each call.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

VARIABLE = "NPU_LOWERING_CHECK_VALUES"

_chosen: bool | None = None


def check_values(enabled: bool) -> bool:
    """Turn the checks of values on or off, on devices other than the CPU.

    They are what names a wrong ``row_index`` or ``group_list``, for example, in place of a device's
    own error, or none. They make the host wait for the device once a call. On the CPU they stay.

    Args:
        enabled: whether values are checked. It holds for the process, and goes before the
            environment variable ``NPU_LOWERING_CHECK_VALUES``, 0 or 1.

    Returns:
        What held before.

    Raises:
        TypeError: enabled is no bool.
        ValueError: the environment variable is neither 0 nor 1.
    """
    global _chosen
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be a bool, got {enabled!r}")
    before = _enabled()
    _chosen = enabled
    return before


def are_checked(values: Tensor) -> bool:
    """Whether a kernel has to look at these values.

    Raises:
        ValueError: the environment variable is neither 0 nor 1.
    """
    return values.device.type == "cpu" or _enabled()


def check_range(name: str, values: Tensor, end: int, form: str, *, closed: bool = False) -> None:
    """Hold indices to ``[0, end)``, where a kernel has to look at them.

    Args:
        name: of the argument.
        values: the indices, of any shape.
        end: the end of what is allowed.
        form: the end in the words of the argument's docstring.
        closed: whether end itself is allowed.

    Raises:
        IndexError: one lies outside; the message names the first.
    """
    if not values.numel() or not are_checked(values):
        return
    last = end if closed else end - 1
    low, high = torch.aminmax(values)
    if int(low) < 0 or int(high) > last:
        flat = values.reshape(-1)
        first = int(((flat < 0) | (flat > last)).nonzero()[0])
        bracket = "]" if closed else ")"
        raise IndexError(
            f"{name} must lie in [0, {form}{bracket} = [0, {end}{bracket}, "
            f"got {name}[{first}] = {int(flat[first])} (counted in the flat tensor)"
        )


def _enabled() -> bool:
    if _chosen is not None:
        return _chosen
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {value}")
    return value == "1"
