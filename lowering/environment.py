"""Which torch_npu this process has, found out without importing torch.

Where torch_npu is installed and CANN is not, a plain ``import torch`` fails, because torch loads
every installed backend. So this has to be asked, and answered, before torch is imported.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import types
from collections.abc import Sequence

NO_TORCH_NPU = 1
"""torch_npu is not installed: the operator is defined by this package."""
ATTACHED = 2
"""torch_npu is imported: this package attaches to the operator that it defines."""
NO_CANN = 3
"""torch_npu is installed and cannot be imported: as :data:`NO_TORCH_NPU`."""

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def find(name: str) -> str | None:
    """The file of a module that could be imported, which it is not; None where there is none.

    Unlike importlib.util.find_spec it is not content with what stands in sys.modules: tests put
    objects of their own there. Nor is a folder without __init__.py a module.
    """
    path: Sequence[str] | None = None
    spec = None
    for part in itertools.accumulate(name.split("."), "{}.{}".format):
        finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
        specs = (finder.find_spec(part, path) for finder in finders)
        spec = next((each for each in specs if each is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec.origin if spec is not None else None


def is_installed() -> bool:
    """Whether torch_npu can be found; it is not imported."""
    return _is_imported() or find("torch_npu") is not None


def _is_imported() -> bool:
    # Its library is loaded, and its __init__ has come to an end.
    return _is_of_a_file("torch_npu._C") and isinstance(
        getattr(sys.modules.get("torch_npu"), "__version__", None), str
    )


def _is_of_a_file(name: str) -> bool:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    return isinstance(module, types.ModuleType) and isinstance(file, str)


def stub() -> str | None:
    """What stands for torch_npu in sys.modules without being it, as tests do; None if nothing."""
    module = sys.modules.get("torch_npu")
    return None if module is None or _is_of_a_file("torch_npu") else repr(module)


def runtime_loads() -> bool:
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
            f"{AUTOLOAD}=0, in a new process"
        )
    if "torch" not in sys.modules and is_installed() and not runtime_loads():
        os.environ.setdefault(AUTOLOAD, "0")


def current() -> int:
    """The state this process is in: one of the three constants of this module."""
    if _is_imported():
        return ATTACHED
    return NO_CANN if is_installed() else NO_TORCH_NPU
