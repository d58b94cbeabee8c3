"""``python -m npu_lowering doctor``: what is here, and for each problem the one thing to do."""

from __future__ import annotations

import platform
import sys

from npu_lowering import environment, errors
from npu_lowering.errors import OffDeviceError
from npu_lowering.offdevice import probe
from npu_lowering.offdevice.bring_up import install
from npu_lowering.offdevice.standins import load
from npu_lowering.version import __version__


def main() -> int:
    """Print the report to standard output, and problems to standard error.

    Returns:
        0 if graphs can be lowered on this machine, on the device or off it, else 1.
    """
    torch, torch_npu = probe.versions()
    _line("python", f"{platform.python_version()} on {platform.machine()}")
    _line("torch", torch or "not installed")
    _line("torch_npu", torch_npu or "not installed")
    _line("npu_lowering", __version__)
    _pair(torch, torch_npu)
    real = probe.real_cann()
    problem: str | None
    if real is not None:
        _line("environment", f"on the device: a real CANN is here ({real} loads)")
        problem = _try_torchair()
    else:
        problem = _try_off_device()
        where = "off the device: torch_npu on stand-ins for CANN"
        if problem is not None:
            where = "without torch_npu" if torch_npu is None else "torch_npu without CANN"
            where += ": operators run on CPU, and graphs cannot be lowered"
        _line("environment", where)
    _registered()
    if problem is None:
        _line("result", "graphs can be lowered on this machine")
        return 0
    _line("result", "graphs cannot be lowered on this machine")
    sys.stdout.flush()
    sys.stderr.write(f"problem: {problem}\n")
    return 1


def shell() -> int:
    """Print what makes ``import torch`` work in a shell, as the shell reads it.

    Returns:
        0.
    """
    if not environment.is_installed():
        line = "# torch_npu is not installed: torch can be imported as it is"
    elif probe.real_cann() is not None:
        line = "# a real CANN is here: torch can be imported as it is, and brings torch_npu"
    else:
        line = f"export {environment.AUTOLOAD}=0  # for torch_npu without CANN"
    sys.stdout.write(f"{line}\n")
    return 0


def _pair(torch: str | None, torch_npu: str | None) -> None:
    """Say whether these two are known to work together, and how to get those that are."""
    if torch is not None and torch_npu is not None:
        known = errors.is_known(torch, torch_npu)
        tested = "the tests are run with it" if known else "the tests were never run with it"
        _line("pair", tested)
    found = ".".join(map(str, errors.release(torch or "")))
    _line("recipe", errors.recipe(found if found in errors.PAIRS else errors.MAIN))


def _line(name: str, value: str) -> None:
    sys.stdout.write(f"{name + ':':<14}{value}\n")


def _registered() -> None:
    import npu_lowering

    sys.stdout.write("registered:\n")
    for line in str(npu_lowering.status()).splitlines():
        sys.stdout.write(f"  {line}\n")


def _try_off_device() -> str | None:
    """Bring torch_npu up off the device; the problem, if it cannot be."""
    try:
        stand_ins = load.load(probe.find_wheels())
        where = f"{len(stand_ins.libraries)} libraries, whole, in {stand_ins.folder}"
        if stand_ins.temporary is not None:
            where = f"written anew at every start: {stand_ins.temporary}"
        _line("stand-ins", where)
        install()
    except OffDeviceError as error:
        return str(error)
    return _try_torchair()


def _try_torchair() -> str | None:
    try:
        import torch_npu  # noqa: F401
        import torchair  # noqa: F401
    except Exception as error:  # noqa: BLE001 -- anything may fail in a driver's start-up
        return (
            f"torch_npu or TorchAIR cannot be imported ({type(error).__name__}: {error}); install "
            "releases of torch, torch_npu, driver and CANN that go together, and source CANN's "
            "set_env.sh where there is one"
        )
    return None
