"""The graph engine: a Python module in the place of TorchAIR's ``torchair.core._torchair``.

All of TorchAIR's own Python runs unmodified in front of it. What arrives here is a serialised
model; it is checked and ordered at ``compile`` and computed node by node on the CPU at ``run``.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from npu_lowering.offdevice.engine import graph, kernels, recorder, rules
from npu_lowering.offdevice.engine.call import Call
from npu_lowering.offdevice.engine.graph import (
    DATA_TYPES,
    Graph,
    GraphError,
    Node,
    Source,
    TensorInfo,
)

MODULE_NAME = "torchair.core._torchair"
_SOC_NAME = "none (npu_lowering.offdevice)"

# Nodes the engine sees to itself: what enters the graph and what leaves it.
_ENDS = (*DATA_TYPES, "NetOutput")


class TorchDataType(enum.Enum):
    """The dtypes TorchAIR's helpers name; the numbers are those of GE."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT8 = 2
    INT32 = 3
    UINT8 = 4
    INT16 = 6
    UINT16 = 7
    UINT32 = 8
    INT64 = 9
    UINT64 = 10
    FLOAT64 = 11
    BOOL = 12
    COMPLEX64 = 16
    COMPLEX128 = 17
    BF16 = 27


class Program:
    """A graph made ready to run: nodes ordered, kernels found, lifetimes known."""

    def __init__(self, model: Graph) -> None:
        _refuse_unknown(model)
        self.graph = model
        self._order = _topological(model)
        self._dies_after = _last_uses(self._order, model.outputs)
        self._constants: dict[Source, torch.Tensor] = {}
        for node in self._order:
            if node.type == "Const":
                self._constants[Source(node.name, 0)] = _constant(node)
            rules.check_attributes(node)

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        assigned: Sequence[torch.Tensor | None] = (),
    ) -> list[torch.Tensor]:
        """Compute the graph.

        Args:
            inputs: CPU tensors, by the index of the Data nodes.
            assigned: For each output, a tensor to write it to, or None.

        Returns:
            Fresh, contiguous tensors, except where one was assigned.

        Raises:
            GraphError: An input does not fit its Data node, a node breaks a rule of the device, or
                a kernel gave something other than the model promises.
        """
        values: dict[Source, torch.Tensor] = dict(self._constants)
        for node, value in zip(self.graph.inputs, _fed(self.graph, inputs)):
            _check_promise(node, 0, value)
            values[Source(node.name, 0)] = value
        caller = frozenset(_storage(values[Source(n.name, 0)]) for n in self.graph.inputs)
        constant = frozenset(_storage(value) for value in self._constants.values())
        for step, node in enumerate(self._order):
            if node.type not in _ENDS and node.type != "Const":
                self._compute(node, values, caller)
            for source in self._dies_after[step]:
                values.pop(source, None)
        results = [values[source] for source in self.graph.outputs]
        return _hand_over(self.graph, results, assigned, caller | constant)

    def _compute(
        self,
        node: Node,
        values: dict[Source, torch.Tensor],
        caller: frozenset[int],
    ) -> None:
        call = Call(
            node, {name: values[source] for name, source in node.inputs.items()}, _in(caller)
        )
        rules.check_call(call)
        try:
            results = kernels.KERNELS[node.type].function(call)
        except GraphError as error:
            raise GraphError(f"node {node.name!r} ({node.type}): {error}") from error
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            got = ", ".join(
                f"{name}: {str(value.dtype).replace('torch.', '')}{list(value.shape)}"
                for name, value in call.inputs.items()
            )
            raise GraphError(
                f"node {node.name!r} ({node.type}) cannot be computed from {got}: {error}"
            ) from error
        listed = (results,) if isinstance(results, torch.Tensor) else tuple(results)
        if len(listed) < len(node.outputs):
            raise GraphError(
                f"node {node.name!r} ({node.type}) has {len(node.outputs)} outputs, and its "
                f"kernel here gives {len(listed)}"
            )
        for index, value in enumerate(listed[: len(node.outputs)]):
            _check_promise(node, index, value)
            if not kernels.KERNELS[node.type].in_place and _storage(value) in caller:
                # A later node may write the caller's tensor in place; this value is of before.
                value = value.clone()
            values[Source(node.name, index)] = value


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


def _refuse_unknown(model: Graph) -> None:
    unknown: dict[str, list[str]] = {}
    for node in model.nodes:
        if node.type not in _ENDS and node.type != "Const" and node.type not in kernels.KERNELS:
            unknown.setdefault(node.type, []).append(node.name)
    if unknown:
        listed = "; ".join(f"{name} (nodes {', '.join(nodes)})" for name, nodes in unknown.items())
        raise GraphError(
            f"graph {model.name!r} has {len(unknown)} GE operators that the CPU engine cannot "
            f"compute: {listed}; npu_lowering.offdevice.lower(function, *args) gives the graph "
            "without running it"
        )


def _topological(model: Graph) -> list[Node]:
    """Nodes in an order that can be computed; otherwise in that of the model.

    The model's own order is the program's, which matters where a tensor is read before it is
    written in place.
    """
    waiting = {node.name: node for node in model.nodes}
    order: list[Node] = []
    for node in model.nodes:
        stack = [node]
        entered: set[str] = set()
        while stack:
            top = stack[-1]
            if top.name not in waiting:
                stack.pop()
                continue
            needs = [s.node for s in top.inputs.values()] + list(top.control)
            open_needs = [name for name in needs if name in waiting]
            if not open_needs:
                order.append(waiting.pop(top.name))
                stack.pop()
            elif top.name in entered:
                loop = [n.name for n in stack if n.name in entered]
                raise GraphError(f"graph {model.name!r} has a cycle through {', '.join(loop)}")
            else:
                entered.add(top.name)
                stack += [waiting[name] for name in reversed(open_needs)]
    return order


def _last_uses(order: Sequence[Node], kept: Sequence[Source]) -> list[list[Source]]:
    last: dict[Source, int] = {}
    for step, node in enumerate(order):
        for index in range(len(node.outputs)):
            last[Source(node.name, index)] = step
        for source in node.inputs.values():
            last[source] = step
    dies: list[list[Source]] = [[] for _ in order]
    for source, step in last.items():
        if source not in kept:
            dies[step].append(source)
    return dies


def _constant(node: Node) -> torch.Tensor:
    value = node.attrs.get("value")
    if not isinstance(value, torch.Tensor):
        raise GraphError(f"node {node.name!r} (Const) has no tensor in its attribute 'value'")
    return value


def _fed(model: Graph, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """The caller's tensors, each as its Data node declares it."""
    if len(inputs) != len(model.inputs):
        raise GraphError(
            f"graph {model.name!r} has {len(model.inputs)} inputs, {len(inputs)} were given"
        )
    fed: list[torch.Tensor] = []
    for node, value in zip(model.inputs, inputs):
        if not isinstance(value, torch.Tensor):
            raise GraphError(f"input {node.name!r} must be a tensor, got {type(value).__name__}")
        info = node.outputs[0]
        if info.shape == () and value.shape == (1,) and info.placement == "CPU":
            # A number of the program (a SymInt, a SymFloat), which TorchAIR boxes as numpy does.
            value = value.reshape(()).to(info.dtype)
        fed.append(value.detach())
    return fed


def _check_promise(node: Node, index: int, value: torch.Tensor) -> None:
    """Hold a tensor to its descriptor's dtype and shape."""
    info = node.outputs[index]
    if info.dtype not in (None, value.dtype) or not _shape_fits(node, info, value):
        got = f"{str(value.dtype).replace('torch.', '')}{list(value.shape)}"
        raise GraphError(
            f"output {index} of node {node.name!r} ({node.type}) must be {info}, got {got}"
        )


def _shape_fits(node: Node, info: TensorInfo, value: torch.Tensor) -> bool:
    if info.shape is None:
        return True
    known = [dim for dim in info.shape if isinstance(dim, int) and dim >= 0]
    if len(info.shape) == value.dim() and all(
        dim == size or dim not in known for dim, size in zip(info.shape, value.shape)
    ):
        return True
    # TorchAIR leaves the meta of a view on the tensor viewed where it builds the view later; the
    # elements are the same then, and only their arrangement differs.
    symbolic = len(known) < len(info.shape)
    return node.type not in DATA_TYPES and (symbolic or prod(known) == value.numel())


def _storage(tensor: torch.Tensor) -> int:
    # Two empty tensors share the address 0 and nothing else.
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _in(caller: frozenset[int]) -> Any:
    return lambda tensor: _storage(tensor) in caller


def _hand_over(
    model: Graph,
    results: Sequence[torch.Tensor],
    assigned: Sequence[torch.Tensor | None],
    owned: frozenset[int],
) -> list[torch.Tensor]:
    """Give each output memory of its own, and only then write the assigned ones."""
    if assigned and len(assigned) != len(results):
        raise GraphError(
            f"graph {model.name!r} has {len(results)} outputs, {len(assigned)} were assigned"
        )
    taken = set(owned)
    fresh: list[torch.Tensor] = []
    for value in results:
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        if _storage(value) in taken or not whole or not value.is_contiguous():
            value = value.clone(memory_format=torch.contiguous_format)
        taken.add(_storage(value))
        fresh.append(value)
    for index, target in enumerate(assigned):
        if target is not None:
            fresh[index] = target.copy_(fresh[index])
    return fresh
