"""What is installed on this machine, found without importing any of it."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import dataclasses
import importlib.metadata
import platform
import sys
from pathlib import Path

from npu_lowering import environment, errors
from npu_lowering.errors import OffDeviceError, release

# A symbol that each stand-in library defines, and no library of CANN does.
MARK = "npu_lowering_stand_in"
MACHINES = ("x86_64", "aarch64")


@dataclasses.dataclass(frozen=True)
class Wheels:
    """The installed torch and torch_npu.

    Attributes:
        torch: Folder of the package.
        torch_npu: Folder of the package.
        torch_version: For example ``2.13.0+cpu``.
        torch_npu_version: For example ``2.13.0`` or ``2.1.0.post17``.
    """

    torch: Path
    torch_npu: Path
    torch_version: str
    torch_npu_version: str


def real_cann() -> str | None:
    """The name of CANN's runtime library if the loader finds a real one, else None."""
    name = "libascendcl.so"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    return None if hasattr(library, MARK) else name


def find_wheels() -> Wheels:
    """Find torch and torch_npu, and check that they can be imported together off the device.

    Raises:
        OffDeviceError: Something is missing or does not fit; the message names it.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise OffDeviceError(
            "off-device lowering needs Linux on x86_64 or aarch64, as torch_npu does; this is "
            f"{sys.platform} on {platform.machine()}. Use a machine or container of that kind"
        )
    if sys.maxsize < 1 << 32:
        raise OffDeviceError("off-device lowering needs a 64-bit Python, this one has 32 bits")
    torch = package_folder("torch")
    if torch is None:
        raise OffDeviceError(f"torch is not installed; run: {errors.recipe()}")
    version = _torch_version(torch)
    needed = errors.requirements(version)
    missing = [module for module in needed if environment.find(module) is None]
    torch_npu = _torch_npu_folder()
    if torch_npu is None:
        raise OffDeviceError(errors.missing(["torch_npu", *missing], version))
    wheels = Wheels(torch, torch_npu, version, _torch_npu_version(torch_npu, version))
    if release(wheels.torch_npu_version) != release(version):
        raise OffDeviceError(errors.mismatch(version, wheels.torch_npu_version))
    if missing:
        raise OffDeviceError(errors.missing(missing, version))
    return wheels


def package_folder(name: str) -> Path | None:
    """The folder of the installed top-level package ``name``, not imported; None if absent."""
    file = environment.find(name)
    return None if file is None else Path(file).resolve().parent


def _torch_npu_folder() -> Path | None:
    """The folder of the installed torch_npu; None if absent.

    Raises:
        OffDeviceError: Something else has its name.
    """
    stub = environment.stub()
    if stub is not None:
        raise OffDeviceError(
            f"torch_npu in this process is {stub}, put into sys.modules in its place, perhaps by a "
            "conftest.py for machines without an NPU; take it out (del sys.modules['torch_npu']) "
            "before npu_lowering.offdevice.install() is called"
        )
    folder = package_folder("torch_npu")
    if folder is None or (folder / "lib").is_dir():
        return folder
    try:
        importlib.metadata.version("torch_npu")
    except importlib.metadata.PackageNotFoundError:
        what = "torch_npu itself is not installed"
    else:
        what = f"it hides the one that is installed, since {folder.parent} comes first in sys.path"
    raise OffDeviceError(
        f"{folder} has the name of torch_npu and no library of it; {what}. Rename that folder, or "
        "start elsewhere"
    )


def _torch_npu_version(folder: Path, torch: str) -> str:
    try:
        return importlib.metadata.version("torch_npu")
    except importlib.metadata.PackageNotFoundError as error:
        wanted = errors.torch_npu_for(torch) or "torch_npu"
        raise OffDeviceError(
            f"torch_npu in {folder} is importable but has no metadata, so its version is unknown; "
            f"install it from its wheel: {errors.add([wanted])}"
        ) from error


def _torch_version(torch: Path) -> str:
    """``__version__`` of torch/version.py, read and not run."""
    for node in ast.parse((torch / "version.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    return "unknown"


def versions() -> tuple[str | None, str | None]:
    """The versions of torch and torch_npu, None for what is not installed; nothing is checked."""
    torch, torch_npu = package_folder("torch"), None
    if package_folder("torch_npu") is not None:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            torch_npu = importlib.metadata.version("torch_npu")
    return _torch_version(torch) if torch else None, torch_npu
