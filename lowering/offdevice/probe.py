"""What is installed on this machine, found without importing any of it."""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path

INSTALL = "pip install 'npu-lowering[offdevice]'"
# A symbol that each stand-in library defines, and no library of CANN does.
MARK = "npu_lowering_stand_in"
MACHINES = ("x86_64", "aarch64")
# What TorchAIR or torch_npu imports, and the distribution that has it.
_IMPORTS = {
    "google.protobuf": "protobuf",
    "packaging": "packaging",
    "numpy": "numpy",
    "yaml": "pyyaml",
}


class OffDeviceError(RuntimeError):
    """TorchAIR cannot be brought up on this machine; the message says why and what to do."""


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
    torch, torch_npu = package_folder("torch"), package_folder("torch_npu")
    if torch is None or torch_npu is None:
        missing = "torch" if torch is None else "torch_npu"
        raise OffDeviceError(f"{missing} is not installed; run: {INSTALL}")
    wheels = Wheels(torch, torch_npu, _torch_version(torch), _version_of("torch_npu"))
    _check_versions(wheels)
    lacking = [name for module, name in _IMPORTS.items() if not _is_installed(module)]
    if lacking:
        raise OffDeviceError(
            f"TorchAIR needs {' and '.join(lacking)}, not installed here; run: {INSTALL}"
        )
    return wheels


def package_folder(name: str) -> Path | None:
    """The folder of the installed top-level package ``name``, not imported; None if absent."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        spec = importlib.util.find_spec(name) if module is None else None
        file = spec.origin if spec is not None else None
    return Path(file).resolve().parent if file else None


def _is_installed(module: str) -> bool:
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is absent
        return False


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise OffDeviceError(
            f"{distribution} is importable but has no metadata, so its version is unknown; "
            f"install it from its wheel: {INSTALL}"
        ) from error


def _torch_version(torch: Path) -> str:
    """``__version__`` of torch/version.py, read and not run."""
    for node in ast.parse((torch / "version.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    return "unknown"


def release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version: ``2.1.0.post17`` and ``2.1.0+cpu`` are (2, 1, 0)."""
    numbers = []
    for part in version.split("+")[0].split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _check_versions(wheels: Wheels) -> None:
    wanted, found = release(wheels.torch_npu_version), release(wheels.torch_version)
    if wanted != found:
        raise OffDeviceError(
            f"torch_npu {wheels.torch_npu_version} is built for torch "
            f"{'.'.join(map(str, wanted))}, but torch {wheels.torch_version} is installed; "
            f"install the pair of one release, for example: {INSTALL}"
        )


def versions() -> tuple[str | None, str | None]:
    """The versions of torch and torch_npu, None for what is not installed; nothing is checked."""
    torch, torch_npu = package_folder("torch"), package_folder("torch_npu")
    return (
        _torch_version(torch) if torch else None,
        _version_of("torch_npu") if torch_npu else None,
    )
