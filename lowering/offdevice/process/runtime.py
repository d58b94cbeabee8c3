"""The functions of ``torch.npu`` that a script may call, as of one idle device."""

# ruff: noqa: ARG001, ARG005 -- signatures are those of what is replaced

from __future__ import annotations

import functools
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

_CORES = 20, 40  # for matrices and for vectors

_NOTHING = (
    "_lazy_init empty_cache init ipc_collect reset_accumulated_memory_stats "
    "reset_max_memory_allocated reset_max_memory_cached reset_peak_memory_stats set_compile_mode "
    "set_device set_per_process_memory_fraction"
)
_NONE_USED = (
    "max_memory_allocated max_memory_cached max_memory_reserved memory_allocated memory_cached "
    "memory_reserved utilization"
)
_TRUE = "is_bf16_supported is_initialized is_jit_compile_false"

_is_traced: Callable[[], bool] = getattr(
    torch.compiler, "is_dynamo_compiling", torch._dynamo.is_compiling
)


class _Context:
    """Enters nothing and leaves nothing: a device where there is only one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def played() -> dict[str, Any]:
    """What plays each name.

    Each has an object of its own: Dynamo refuses one that it finds under two names.
    """

    def constant(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    return {
        **{name: constant(None) for name in _NOTHING.split()},
        **{name: constant(0) for name in _NONE_USED.split()},
        **{name: constant(True) for name in _TRUE.split()},
        "is_available": for_users(True, False),
        "device": type("device", (_Context,), {}),
        "device_count": for_users(1, 0),
        "current_device": constant(0),
        "default_generators": (torch.default_generator,),
        "initial_seed": lambda: torch.initial_seed(),
        "seed": lambda: _seed(torch.seed()),
        "seed_all": lambda: _seed(torch.seed()),
        "manual_seed": lambda seed: _seed(seed),
        "manual_seed_all": lambda seed: _seed(seed),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
        "get_per_process_memory_fraction": constant(1.0),
        "get_device_name": constant(_soc_name()),
        "get_device_properties": constant(
            types.SimpleNamespace(
                name=_soc_name(),
                total_memory=_memory()[1],
                cube_core_num=_CORES[0],
                vector_core_num=_CORES[1],
            )
        ),
        "mem_get_info": lambda device=None: _memory(),
    }


def for_users(value: Any, torchs: Any) -> Callable[..., Any]:
    """A function that tells users ``value``, and torch's own code, which then acts, ``torchs``.

    What is on the device is on the CPU for torch: it must not make streams for it, pin memory, or
    start a process group.
    """

    def answer(*args: Any, **kwargs: Any) -> Any:
        if _is_traced():
            return value
        return torchs if _is_torchs(sys._getframe(1).f_globals.get("__name__")) else value

    return answer


def acting_for_users(
    function: Callable[..., Any], torchs: Callable[..., Any]
) -> Callable[..., Any]:
    """As :func:`for_users`, of what is called instead of what is answered."""

    @functools.wraps(torchs)
    def act(*args: Any, **kwargs: Any) -> Any:
        if _is_traced():
            return function(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__")
        return (torchs if _is_torchs(caller) else function)(*args, **kwargs)

    return act


# Where Dynamo follows streams: it has to see those of the device that is played.
_OF_STREAMS = ("torch._dynamo.variables.streams", "torch._dynamo.utils")


def _is_torchs(module: str | None) -> bool:
    """Whether a module is torch's; torch.npu is a name of torch_npu's."""
    top, second = f"{module}.".split(".")[:2]
    return top == "torch" and second != "npu" and module not in _OF_STREAMS


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


def _memory() -> tuple[int, int]:
    """Free and total memory of this machine, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _soc_name() -> str:
    """The device that graphs are lowered for."""
    from torchair.core import _torchair

    return str(_torchair.GetSocName())
