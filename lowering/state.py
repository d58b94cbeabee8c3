"""Who registered what: ours, upstream's or none."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import torch

from npu_lowering import environment, registration
from npu_lowering.version import __version__

_ENVIRONMENTS = {
    environment.NO_TORCH_NPU: "torch_npu is not installed; the operator is ours",
    environment.ATTACHED: "torch_npu is imported; ours is attached to its operator",
    environment.NO_CANN: "torch_npu is installed and not imported; the operator is ours",
}


@dataclass(frozen=True)
class Status:
    """What this process runs the operator with; prints as a table.

    Attributes:
        environment: 1 without torch_npu, 2 with torch_npu imported, 3 with torch_npu installed and
            not imported.
        npu_lowering: version.
        torch: version.
        torch_npu: version, or None where it is not installed.
        schema: ``"ours"``, ``"upstream's"`` or ``"none"``, like each of the following.
        cpu: the CPU kernel.
        fake: the Meta kernel, which fake tensors go through.
        autograd: the derivative.
        converter: the GE converter that TorchAIR finds on the operator.
    """

    environment: int
    npu_lowering: str
    torch: str
    torch_npu: str | None
    schema: str
    cpu: str
    fake: str
    autograd: str
    converter: str

    def __str__(self) -> str:
        """One line an attribute."""
        rows = [f"{name:<13}{value}" for name, value in vars(self).items()]
        rows[0] += f" ({_ENVIRONMENTS[self.environment]})"
        return "\n".join(rows)


def status() -> Status:
    """Say which part of the operator is whose, as the dispatcher has it now.

    Returns:
        A :class:`Status`. "ours" are registered by this package, "upstream's" by anyone else, which
        is torch_npu.
    """
    converter = getattr(registration.op(), "_ge_converter", None)
    return Status(
        environment=environment.current(),
        npu_lowering=__version__,
        torch=torch.__version__,
        torch_npu=_version("torch_npu"),
        schema=registration.owner(),
        cpu=registration.owner("CPU"),
        fake=registration.owner("Meta"),
        autograd=registration.owner("Autograd"),
        converter=_converter_owner(converter),
    )


def _converter_owner(converter: object) -> str:
    if converter is None:
        return "none"
    ours = getattr(converter, "__module__", "").startswith("npu_lowering.")
    return "ours" if ours else "upstream's"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
