"""The graph engine: a Python module in the place of TorchAIR's ``torchair.core._torchair``.

All of TorchAIR's own Python runs unmodified in front of it. What arrives here is a serialised
model; it is checked and ordered at ``compile`` and computed node by node on the CPU at ``run``.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from npu_lowering.offdevice.engine import graph, recorder
from npu_lowering.offdevice.engine.graph import Graph, GraphError
from npu_lowering.offdevice.engine.program import Program
from npu_lowering.operators.operator import dtype_name

MODULE_NAME = "torchair.core._torchair"
_SOC_NAME = "none (npu_lowering.offdevice)"

# The dtypes that TorchAIR's helpers name, with the numbers of GE.
TorchDataType = enum.Enum(  # type: ignore[misc]
    "TorchDataType",
    {
        "BF16" if dtype == torch.bfloat16 else dtype_name(dtype).upper(): code
        for dtype, code in graph.ge_codes().items()
    },
)


class TorchNpuGraphBase:
    """One graph, as TorchAIR drives it: load, set_hint_shape, compile, run."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._graph: Graph | None = None
        self._program: Program | None = None
        self._dtypes: list[torch.dtype] = []
        self._shapes: list[Sequence[int]] = []

    def load(
        self,
        blob: bytes,
        options: dict[str, str],  # noqa: ARG002 - compile options of a device
        input_placements: Iterable[int],  # noqa: ARG002 - all tensors are on the CPU here
        output_dtypes: Iterable[int],
        executor_type: int,  # noqa: ARG002
    ) -> None:
        """Read a serialised model.

        Raises:
            GraphError: It cannot be read, or contradicts what is said about its outputs.
        """
        self._program = None
        self._graph = graph.parse(blob)
        dtypes = [graph.ge_code_to_dtype(code) for code in output_dtypes]
        if len(dtypes) != len(self._graph.outputs):
            raise GraphError(
                f"graph {self._name!r} has {len(self._graph.outputs)} outputs and "
                f"{len(dtypes)} output dtypes"
            )
        self._dtypes = dtypes

    def set_hint_shape(
        self,
        inputs: Sequence[Any],  # noqa: ARG002 - the Data nodes say the same
        outputs: Sequence[Sequence[int]],
    ) -> None:
        """Take what TorchAIR expects to come out; -1 is a dimension it does not know."""
        self._shapes = list(outputs)

    def compile(self) -> None:
        """Order the graph and find its kernels.

        Raises:
            GraphError: Nothing was loaded, an operator has no kernel here, or nodes form a cycle.
        """
        if self._graph is None:
            raise GraphError(f"graph {self._name!r} was not loaded")
        recorder.remember(self._graph)
        self._program = Program(self._graph)

    def auto_tune(self, call: tuple[Any, Any]) -> None:
        """Nothing to tune here."""

    def run(self, call: tuple[Sequence[Any], Sequence[Any], Any]) -> list[torch.Tensor]:
        """Run the graph.

        Args:
            call: Inputs, assigned outputs (or an empty list), and a stream, which the CPU has not.

        Raises:
            GraphError: It was not compiled, or ``Program.run`` raised.
        """
        if self._program is None:
            raise GraphError(f"graph {self._name!r} was not compiled")
        inputs, assigned, _ = call
        # What the graph computes has no history, as on the device, and asks no default device.
        with torch.no_grad(), torch.device("cpu"):
            results = self._program.run(inputs, assigned)
        for index, (result, dtype) in enumerate(zip(results, self._dtypes)):
            shape = self._shapes[index] if index < len(self._shapes) else result.shape
            fits = len(shape) == result.dim() and all(
                dim in (-1, size) for dim, size in zip(shape, result.shape)
            )
            if result.dtype != dtype or not fits:
                raise GraphError(
                    f"output {index} of graph {self._name!r} must be {dtype} of shape "
                    f"{list(shape)}, got {result.dtype} of shape {list(result.shape)}"
                )
        return results

    def summary(self) -> str:
        """The graph in words."""
        return "" if self._graph is None else str(self._graph)


def module() -> types.ModuleType:
    """A module to stand at ``sys.modules["torchair.core._torchair"]``."""
    made = types.ModuleType(MODULE_NAME, "The CPU graph engine of npu_lowering.offdevice.")
    for name, value in {
        "InitializeGraphEngine": _initialize,
        "FinalizeGraphEngine": _finalize,
        "InitDeviceStdoutChannel": _initialize,
        "SetDebugLogPath": _initialize,
        "GetSocName": _soc_name,
        "check_cann_compat": _check_cann_compat,
        "get_registered_ir_def": _get_registered_ir_def,
        "export": _export,
        "TorchDataType": TorchDataType,
        "TorchNpuGraphBase": TorchNpuGraphBase,
        "engine": "npu_lowering.offdevice",
    }.items():
        setattr(made, name, value)
    return made


def _initialize(_option: Any = None) -> int:
    """There is no device to open, and no log of one."""
    return 0


def _finalize() -> None:
    """Nothing is held that outlives the graphs."""


def _soc_name() -> str:
    return _SOC_NAME


def _check_cann_compat(op_type: str, inputs: Sequence[str], attrs: Sequence[str]) -> str:  # noqa: ARG001
    """Every input and attribute that TorchAIR's builder knows is taken; an empty text says so."""
    return ""


def _get_registered_ir_def(op_type: str) -> tuple[str, list[Any], list[Any], list[Any]]:  # noqa: ARG001
    """No definition is registered: the registry is part of CANN. Any word but SUCCESS says so."""
    return "NotRegistered", [], [], []


def _export(blob: bytes, options: dict[str, str]) -> None:
    """Write an exported model where TorchAIR wants it."""
    graph.parse(blob)
    Path(options["export_path_dir"], options["export_name"]).write_bytes(blob)
