"""What the generic tests know of each operator: a record, found in the folder records/.

A record's oracle shares no code with the package. A tolerance says why it is not zero.
"""

import contextlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from errors import Bad

from npu_lowering.operators import BY_NAME

Case = dict[str, Any]


@dataclass(frozen=True)
class Tested:
    """How an operator is tested.

    Attributes:
        name: the operator's.
        samples: legal calls by name, as keyword arguments: dtypes, optional arguments, sizes.
        oracle: from such arguments to the result, or the results; behind them, what each of the
            written arguments holds then.
        node: the GE type that a call is lowered to.
        attributes: from a call to attributes of that node, those that the call decides.
        errors: calls that metadata shows to be wrong.
        value_errors: calls that only data shows to be wrong.
        differentiable: arguments that a gradient flows to; none of them where it is refused.
        reference: the oracle in float64, for gradients; takes ``compute``.
        tolerance: what eager may differ from the oracle by, relative to the largest magnitude.
        exact: whether a call is exact all the same.
        why: why the tolerance is not zero.
        lowered: samples that are lowered; None for all.
        paths: kernel paths by name, each entered as a context.
        decomposed: whether it has a decomposition.
        undefined: from a call and a result to what of it is defined, where not all of it is.
        written: arguments that the operator writes.
        written_lowered: whether a graph of TorchAIR writes them, too.
    """

    name: str
    samples: Mapping[str, Callable[[], Case]]
    oracle: Callable[..., Any]
    node: str | Callable[[Case], str | None] | None
    attributes: Callable[[Case], Mapping[str, Any]] = lambda case: {}  # noqa: ARG005
    errors: Mapping[str, Bad] = field(default_factory=dict)
    value_errors: Mapping[str, Bad] = field(default_factory=dict)
    differentiable: tuple[str, ...] = ()
    reference: Callable[..., Any] | None = None
    tolerance: float = 0.0
    exact: Callable[[Case], bool] = lambda case: False  # noqa: ARG005
    why: str = ""
    lowered: tuple[str, ...] | None = None
    paths: Mapping[str, Callable[[], Any]] = field(
        default_factory=lambda: {"only": contextlib.nullcontext}
    )
    decomposed: bool = True
    undefined: Callable[[Case, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]] | None = None
    written: tuple[str, ...] = ()
    written_lowered: bool = True

    @property
    def operator(self):
        """The package's own record."""
        return BY_NAME[self.name]

    def node_of(self, case):
        """The GE type that one call is lowered to."""
        return self.node(case) if callable(self.node) else self.node


def _found():
    for path in sorted((Path(__file__).parent / "records").glob("*.py")):
        module = importlib.import_module(f"records.{path.stem}")
        yield from module.TESTED


TESTED = {record.name: record for record in _found()}


def samples(where=lambda record, sample: True):  # noqa: ARG005
    """Every sample of every operator, as (operator, sample)."""
    return [
        (name, sample)
        for name, record in TESTED.items()
        for sample in record.samples
        if where(record, sample)
    ]


def split(operator, case):
    """A call's arguments as the dispatcher takes them: positional ones, and the rest."""
    case = dict(case)
    positional = [
        parameter.name
        for parameter in operator.signature.parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    args = []
    for name in positional:
        if name not in case:
            break
        args.append(case.pop(name))
    return tuple(args), case


def outcome(name, case, function, *, lowered=False):
    """What a call gives, and behind it the arguments that it writes; the case stays as it is."""
    record = TESTED[name]
    case = {**case, **{each: case[each].clone() for each in record.written}}
    if lowered and not record.written_lowered:
        return results(function(case))
    return (*results(function(case)), *(case[each] for each in record.written))


def results(value):
    """A result, or several, or none, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)


def on_tensors(function, value):
    """A call, or a part of it, with each tensor replaced."""
    if isinstance(value, dict):
        return {name: on_tensors(function, each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [on_tensors(function, each) for each in value]
    return function(value) if isinstance(value, torch.Tensor) else value
