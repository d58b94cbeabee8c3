"""Who registered what: ours, upstream's or none."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from npu_lowering import environment, registration
from npu_lowering.operators import BY_NAME
from npu_lowering.operators.grouped_matmul_finalize_routing import NAME, native
from npu_lowering.operators.operator import Operator
from npu_lowering.version import __version__

_ENVIRONMENTS = {
    environment.NO_TORCH_NPU: "torch_npu is not installed; the operators are ours",
    environment.ATTACHED: "torch_npu is imported; ours are attached to its operators",
    environment.NO_CANN: "torch_npu is installed and not imported; the operators are ours",
}


@dataclass(frozen=True)
class Owners:
    """Whose the parts of one operator are: ``"ours"``, ``"upstream's"`` or ``"none"``.

    Attributes:
        schema: the definition. "none" beside a torch_npu that lacks the operator.
        cpu: the CPU kernel.
        portable: the kernel of devices that are neither CPU nor NPU.
        fake: the Meta kernel, which fake tensors go through.
        autograd: the derivative, or what refuses one.
        converter: the GE converter that TorchAIR finds on the operator.
    """

    schema: str
    cpu: str
    portable: str
    fake: str
    autograd: str
    converter: str


@dataclass(frozen=True)
class Status:
    """What this process runs the operators with; prints as a table.

    Attributes:
        environment: 1 without torch_npu, 2 with torch_npu imported, 3 with torch_npu installed and
            not imported.
        npu_lowering: version.
        torch: version.
        torch_npu: version, or None where it is not installed.
        kernel: the path of the compiled CPU kernel, "none" where there is none.
        kernel_reason: why it is this one.
        operators: the owners of each operator's parts, by name.
    """

    environment: int
    npu_lowering: str
    torch: str
    torch_npu: str | None
    kernel: str
    kernel_reason: str
    operators: Mapping[str, Owners]

    @property
    def schema(self) -> str:
        """Of the fused operator, like each of the following."""
        return self.operators[NAME].schema

    @property
    def cpu(self) -> str:
        """The CPU kernel."""
        return self.operators[NAME].cpu

    @property
    def fake(self) -> str:
        """The Meta kernel, which fake tensors go through."""
        return self.operators[NAME].fake

    @property
    def autograd(self) -> str:
        """The derivative."""
        return self.operators[NAME].autograd

    @property
    def converter(self) -> str:
        """The GE converter that TorchAIR finds on the operator."""
        return self.operators[NAME].converter

    def __str__(self) -> str:
        """A line for each attribute, and one for each operator."""
        rows = [
            f"environment  {self.environment} ({_ENVIRONMENTS[self.environment]})",
            f"npu_lowering {self.npu_lowering}",
            f"torch        {self.torch}",
            f"torch_npu    {self.torch_npu}",
            f"kernel       {self.kernel} ({self.kernel_reason})",
        ]
        width = max(map(len, self.operators)) + 2
        columns = list(Owners.__dataclass_fields__)
        rows.append("".join([" " * width, *(f"{column:<12}" for column in columns)]).rstrip())
        for name, owners in self.operators.items():
            cells = [f"{getattr(owners, column):<12}" for column in columns]
            rows.append("".join([f"{name:<{width}}", *cells]).rstrip())
        return "\n".join(rows)


def status() -> Status:
    """Say which part of each operator is whose, as the dispatcher has it now.

    Returns:
        A :class:`Status`. "ours" are registered by this package, "upstream's" by anyone else, which
        is torch_npu.
    """
    return Status(
        environment=environment.current(),
        npu_lowering=__version__,
        torch=torch.__version__,
        torch_npu=_version("torch_npu"),
        kernel=native.path(),
        kernel_reason=native.reason(),
        operators={name: _owners(operator) for name, operator in BY_NAME.items()},
    )


def _owners(operator: Operator) -> Owners:
    def owner(key: str = "") -> str:
        return registration.owner(operator.qualname, key)

    return Owners(
        schema=owner(),
        cpu=owner("CPU"),
        portable=owner("CompositeExplicitAutograd"),
        fake=owner("Meta"),
        autograd=owner("Autograd"),
        converter=_converter_owner(operator),
    )


def _converter_owner(operator: Operator) -> str:
    if not registration.is_defined(operator.qualname):
        return "none"
    converter = getattr(operator.overload, "_ge_converter", None)
    if converter is None:
        return "none"
    ours = getattr(converter, "__module__", "").startswith("npu_lowering.")
    return "ours" if ours else "upstream's"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
