"""A device for this process, and for those that it starts afresh.

Importing this imports neither torch nor torch_npu.
"""

from __future__ import annotations

import multiprocessing.spawn
from collections.abc import Callable
from typing import Any

from npu_lowering.offdevice import install


def prepare() -> bool:
    """Make the device of this process.

    Returns:
        False if a real CANN is here, and with it perhaps a real device.
    """
    if not install():
        return False
    from npu_lowering.offdevice.process import device

    device.play()
    return True


class _Prepare:
    """Calls a function in the process in which it is unpickled."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return self._prepare, ()


def prepare_children(function: Callable[[], object]) -> None:
    """Let processes that multiprocessing starts afresh call it before they import the script.

    They are sent a dict first, of which they ignore what they do not know. What is not started
    afresh, but forked, has the device already.

    Args:
        function: Of a module, without arguments.
    """
    original = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {"npu_lowering": _Prepare(function), **original(name)}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
