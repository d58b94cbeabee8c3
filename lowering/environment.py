"""Which torch_npu this process has, found out without importing torch.

Where torch_npu is installed and CANN is not, a plain ``import torch`` fails, because torch loads
every installed backend. So this has to be asked, and answered, before torch is imported.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

NO_TORCH_NPU = 1
"""torch_npu is not installed: the operator is defined by this package."""
ATTACHED = 2
"""torch_npu is imported: this package attaches to the operator that it defines."""
NO_CANN = 3
"""torch_npu is installed and cannot be imported: as :data:`NO_TORCH_NPU`."""

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def is_installed() -> bool:
    """Whether torch_npu can be found; it is not imported."""
    return "torch_npu" in sys.modules or importlib.util.find_spec("torch_npu") is not None


def has_cann() -> bool:
    """Whether the runtime that torch_npu is linked against loads, be it CANN's or a stand-in."""
    try:
        ctypes.CDLL("libascendcl.so")
    except OSError:
        return False
    return True


def keep_torch_importable() -> None:
    """Turn off torch's loading of torch_npu where that can only fail.

    Raises:
        ImportError: It has failed already: a process can initialise torch once only.
    """
    if "torch._C" in sys.modules and "torch" not in sys.modules:
        raise ImportError(
            "torch has failed to import earlier in this process, and cannot be imported again. "
            "Where torch_npu is installed without CANN, import npu_lowering before torch, or set "
            f"{_AUTOLOAD}=0, in a new process"
        )
    if "torch" not in sys.modules and is_installed() and not has_cann():
        os.environ.setdefault(_AUTOLOAD, "0")


def current() -> int:
    """The state this process is in: one of the three constants of this module."""
    if getattr(sys.modules.get("torch_npu"), "__version__", None) is not None:
        return ATTACHED
    return NO_CANN if is_installed() else NO_TORCH_NPU
