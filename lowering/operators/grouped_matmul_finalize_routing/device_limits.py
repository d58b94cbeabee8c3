"""Documented limits of the device: data of their own, and none of the arithmetic's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from npu_lowering.operators.checking import Size, is_symbolic
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem


@dataclass(frozen=True)
class _DeviceLimit:
    """A documented limit of the device; none of the arithmetic."""

    quantity: str
    expected: str
    devices: str
    holds: Callable[[int], bool]


_DOCUMENT = "the devices of the interface document"
_NEWER = "newer devices"
# Sources: the interface document, 参数说明; for newer devices, the shape checks of CANN.
_DEVICE_LIMITS = (
    _DeviceLimit("m", "at most 131072", _DOCUMENT, lambda m: m <= 131072),
    _DeviceLimit("k", "2048", _DOCUMENT, lambda k: k == 2048),
    _DeviceLimit("n", "7168", _DOCUMENT, lambda n: n == 7168),
    _DeviceLimit("e", "at most 256", _DOCUMENT, lambda e: e <= 256),
    _DeviceLimit("rows of shared_input", "at most 2048", _DOCUMENT, lambda rows: rows <= 2048),
    _DeviceLimit("output_bs", "at most 16384", _DOCUMENT, lambda rows: rows <= 16384),
    _DeviceLimit("k", "a multiple of 16", _NEWER, lambda k: k % 16 == 0),
    _DeviceLimit("n", "a multiple of 32", _NEWER, lambda n: n % 32 == 0),
    _DeviceLimit("n", "at least 256", _NEWER, lambda n: n >= 256),
)


def limits_of(problem: Problem) -> list[str]:
    """A sentence for each limit that a checked call exceeds, with the rule and the value."""
    shared = problem.shared_input
    sizes: dict[str, Size | None] = {
        "m": problem.m,
        "k": problem.k,
        "n": problem.n,
        "e": problem.e,
        "rows of shared_input": None if shared is None else shared.shape[0],
        "output_bs": problem.output_bs,
    }
    sentences = []
    for limit in _DEVICE_LIMITS:
        size = sizes[limit.quantity]
        # A symbolic size has no value to judge, and asking for one would specialise it.
        if size is not None and not is_symbolic(size) and not limit.holds(size):
            sentences.append(
                f"{limit.quantity} must be {limit.expected} on {limit.devices}, got {size}"
            )
    return sentences
