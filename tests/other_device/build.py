"""Builds and loads device.cpp, a device that is neither CPU nor NPU."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("device.cpp")
NAME = "toy"


def compiler():
    """The C++ compiler, None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def library(folder):
    """The path of the library, built in folder once for each torch, compiler and source."""
    from torch.utils import cpp_extension

    made_from = [torch.__version__, sys.version, str(compiler()), SOURCE.read_text("utf-8")]
    name = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]
    path = Path(folder) / f"{NAME}-{name}.so"
    if not path.exists():
        # Several processes may build at once: each its own file, and the last one stays.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            command = [
                compiler(),
                *("-std=c++20", "-O0", "-fPIC", "-shared", "-w"),
                f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
                *(f"-isystem{each}" for each in cpp_extension.include_paths()),
                str(SOURCE),
                *(f"-L{each}" for each in cpp_extension.library_paths()),
                *("-ltorch_cpu", "-ltorch", "-lc10"),
                *("-o", str(made)),
            ]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(path)
    return path


def load(path):
    """The device in this process, as ``torch.device("toy")``."""
    torch.ops.load_library(path)
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None  # noqa: ARG005
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._register_device_module(NAME, module)
