"""Which documented limits of the device a call exceeds."""

from __future__ import annotations

from typing import Any

from npu_lowering.operators import BY_NAME
from npu_lowering.operators.grouped_matmul_finalize_routing import NAME


class DeviceLimitWarning(UserWarning):
    """A call that is lowered exceeds a documented limit of the device."""


def device_limits(*args: Any, operator: str = NAME, **kwargs: Any) -> list[str]:
    """Say which documented limits of the device a call exceeds.

    The limits are the device's, not the arithmetic's: on CPU the call runs all the same, and
    lowering it to GE warns with these sentences (:class:`DeviceLimitWarning`).

    Args:
        *args: the operator's arguments, of any device; fake and meta tensors serve as well, for no
            data is read.
        operator: its name, such as ``"npu_swiglu"``.
        **kwargs: its keyword arguments.

    Returns:
        A sentence for each limit exceeded, with the rule and the value; empty when there is none,
        or when none is known of the operator. Limits on sizes that are symbolic are left out.

    Raises:
        KeyError: there is no such operator here.
        TypeError, ValueError, NotImplementedError: the call is not legal anywhere; as the operator.
    """
    if operator not in BY_NAME:
        raise KeyError(f"operator must be one of {', '.join(BY_NAME)}, got {operator!r}")
    record = BY_NAME[operator]
    problem = record.problem(*args, **kwargs)
    return [] if record.limits is None else record.limits(problem)
