"""Bringing torch_npu and TorchAIR into this process, on a machine without CANN."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import threading
import types
import warnings
from typing import Any

from npu_lowering import errors
from npu_lowering.errors import OffDeviceError
from npu_lowering.offdevice import probe
from npu_lowering.offdevice.process import plain
from npu_lowering.offdevice.standins import load

# Nothing of torch is imported with this module: where that fails, the message is ours.
_NAMESPACE = "npu"
_ENGINE = "torchair.core._torchair"
_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"

_lock = threading.RLock()
_installed = False
_engine: types.ModuleType | None = None


def install() -> bool:
    """Make torch_npu and TorchAIR work in this process without CANN and without an NPU.

    Afterwards ``import torch_npu`` and ``import torchair`` work, the operator runs on CPU tensors,
    and what ``torchair.get_npu_backend()`` compiles is executed on the CPU. It may be called before
    or after torch or npu_lowering is imported, and any number of times. For processes started from
    this one, torch is kept from loading torch_npu by itself
    (``TORCH_DEVICE_BACKEND_AUTOLOAD=0``), since that fails without CANN.

    Returns:
        True if the process is off-device now. False, with a warning and nothing changed, if a real
        CANN is there.

    Raises:
        OffDeviceError: It is not possible here; the message says why and what to do.
    """
    global _installed
    with _lock:
        if _installed:
            return True
        real = probe.real_cann()
        if real is not None:
            warnings.warn(
                f"npu_lowering.offdevice.install() did nothing: a real CANN is here ({real} "
                "loads), so torch_npu and TorchAIR work by themselves",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        found = probe.find_wheels()
        _refuse_other_engine()
        # What upstream warns of, and makes of warnings, while it is imported is not the user's.
        with plain.signals_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _bring_in(found)
            # These import torch.
            from npu_lowering.offdevice.process import attention, randomness

            attention.choose_what_lowers()
            randomness.play()
        importlib.import_module("npu_lowering.converters").register()
        from npu_lowering.offdevice.process import formats, refusals  # which import torch

        formats.play()
        refusals.refuse_devices()
        refusals.refuse_operators()
        _installed = True
        return True


def is_installed() -> bool:
    """Whether :func:`install` has made this process one that runs off the device."""
    return _installed


def _bring_in(found: probe.Wheels) -> None:
    # Defines our operators where torch_npu has not.
    register = _import("npu_lowering.registration")
    if "torch_npu" not in sys.modules:
        # A second definition of an operator, from C++, would end the process without an
        # exception. So ours go first, and come back as kernels.
        old = _operators()
        register.withdraw()
        try:
            _refuse_other_definitions()
            load.load(found)
            with plain.kept():
                _import_torch_npu()
            plain.without_device()
        finally:
            register.register()
            _renew(old)
            # By the objects that torch.ops hands out from here on.
            _import("npu_lowering.flop_formulas").register()
    os.environ[_AUTOLOAD] = "0"  # torch_npu sets it, too
    _replace_engine()


def _import_torch_npu() -> None:
    _forget_failed_import()
    os.environ[_AUTOLOAD] = "0"
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            _import("torch_npu")
    finally:
        # Standard output is the script's; and that it found no CANN is known.
        sys.stderr.writelines(
            line
            for line in printed.getvalue().splitlines(keepends=True)
            if "ASCEND_HOME_PATH" not in line
        )


def _operators() -> list[Any]:
    """What torch.ops has handed out for our operators."""
    import torch

    from npu_lowering.operators import OPERATORS

    packets = dict.fromkeys((operator.namespace, operator.packet) for operator in OPERATORS)
    made = [(vars(getattr(torch.ops, namespace)), name) for namespace, name in packets]
    return [found[name] for found, name in made if name in found]


def _renew(packets: list[Any]) -> None:
    """Make operators that someone got hold of earlier the ones that are defined now.

    They point at definitions that are gone; a call through one would read freed memory.
    """
    import torch

    for old in packets:
        namespace = getattr(torch.ops, old._qualified_op_name.partition("::")[0])
        new = getattr(namespace, old.__name__)
        overloads = {name: vars(old)[name] for name in old.overloads() if name in vars(old)}
        for name, overload in overloads.items():
            vars(overload).update(vars(getattr(new, name)), _overloadpacket=old)
        vars(old).update(vars(new))
        vars(old).update(overloads)
        setattr(namespace, old.__name__, old)


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("npu_lowering", "torch_npu"):
            raise
        raise OffDeviceError(f"{name} needs {errors.module(error.name)}") from error


def _refuse_other_definitions() -> None:
    from npu_lowering import torch_internals

    defined = list(torch_internals.operator_names(_NAMESPACE))
    if defined:
        raise OffDeviceError(
            f"{', '.join(sorted(defined))} must not be defined before torch_npu is imported: "
            "torch_npu defines every operator of npu:: itself, and a second definition ends the "
            "process. Call npu_lowering.offdevice.install() before the code that defines it"
        )


def _forget_failed_import() -> None:
    """Drop what an earlier ``import torch_npu`` that failed left, so that the next one is whole."""
    for name in [name for name in sys.modules if name.startswith("torch_npu.")]:
        del sys.modules[name]


def _refuse_other_engine() -> None:
    if sys.modules.get(_ENGINE) is not _engine:
        raise OffDeviceError(
            "torchair was imported before npu_lowering.offdevice.install(), and holds its own "
            "graph engine, which needs CANN. Call install() first"
        )


def _replace_engine() -> None:
    """Put ours in the place of TorchAIR's one C++ module, before TorchAIR first looks for it."""
    global _engine
    from npu_lowering.offdevice.engine import module

    if _engine is None:
        _engine = module.module()
        sys.modules[_ENGINE] = _engine
    _import("torch_npu.dynamo")
    _import("torchair")
    core: Any = _import("torchair.core")
    backend: Any = _import("torchair.core._backend")
    core._torchair = _engine  # as an import of it would have set
    # Else it asks the runtime, which has no device to name.
    backend._cached_device_id = 0
    # Some converters choose by the device's name, and torch_npu would ask the driver for it.
    soc_name = _engine.GetSocName()
    _import("torch_npu").npu.get_device_name = lambda device=None: soc_name  # noqa: ARG005
