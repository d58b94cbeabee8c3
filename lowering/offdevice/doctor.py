"""``python -m npu_lowering doctor``: what is here, and for each problem the one thing to do."""

from __future__ import annotations

import platform
import sys

from npu_lowering.offdevice import standins, wheels
from npu_lowering.offdevice.install import install
from npu_lowering.offdevice.wheels import OffDeviceError
from npu_lowering.version import __version__


def main() -> int:
    """Print the report to standard output, and problems to standard error.

    Returns:
        0 if graphs can be lowered on this machine, on the device or off it, else 1.
    """
    torch, torch_npu = wheels.versions()
    _line("python", f"{platform.python_version()} on {platform.machine()}")
    _line("torch", torch or "not installed")
    _line("torch_npu", torch_npu or "not installed")
    _line("npu_lowering", __version__)
    real = wheels.real_cann()
    problem = None
    if real is not None:
        _line("environment", f"on the device: a real CANN is here ({real} loads)")
        problem = _try_torch_npu()
    else:
        try:
            found = wheels.find_wheels()
            install()
            _line("environment", "off the device: torch_npu on stand-ins for CANN")
            _line("stand-ins", _describe(standins.find(found)))
        except OffDeviceError as error:
            state = "without CANN" if torch_npu else "without torch_npu"
            _line("environment", f"{state}: the operator runs on CPU; graphs cannot be lowered")
            problem = str(error)
    _registered()
    if problem is None:
        _line("result", "graphs can be lowered on this machine")
        return 0
    _line("result", "graphs cannot be lowered on this machine")
    sys.stdout.flush()
    sys.stderr.write(f"problem: {problem}\n")
    return 1


def _line(name: str, value: str) -> None:
    sys.stdout.write(f"{name + ':':<14}{value}\n")


def _registered() -> None:
    import npu_lowering

    sys.stdout.write("registered:\n")
    for line in str(npu_lowering.status()).splitlines():
        sys.stdout.write(f"  {line}\n")


def _describe(found: standins.StandIns) -> str:
    if found.libraries:
        return f"{len(found.libraries)} libraries, whole, in {found.folder}"
    return (
        f"written anew at every start, as {found.folder} cannot be used; "
        "set XDG_CACHE_HOME to a folder of your own that you can write to"
    )


def _try_torch_npu() -> str | None:
    try:
        import torch_npu
        import torchair
    except Exception as error:  # noqa: BLE001 -- anything may fail in a driver's start-up
        return (
            f"torch_npu or TorchAIR cannot be imported ({type(error).__name__}: {error}); "
            "check that CANN's set_env.sh was sourced and that the driver, CANN and torch_npu "
            "are of releases that go together"
        )
    _line("torchair", f"{torchair.__name__} of torch_npu {torch_npu.__version__}")
    return None
