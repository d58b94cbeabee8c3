"""The record of an operator: all that the rest of the package knows of it.

A call enters by the signature of ``check``, which holds it to the contract and turns it into one
checked value. That value goes to exactly one stage: the fake (shapes), a kernel (numbers), the
decomposition (a graph of standard torch ops) or a converter (a GE node). The signature is written
once, as Python: the schema is derived from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Callable, NoReturn, ParamSpec, Protocol, TypeVar, Union

import torch
from torch import Tensor

NAMESPACE = "npu"
OWN_NAMESPACE = "npu_lowering"
"""Of operators that torch_npu does not have."""

# Annotations of a signature that Python has no type of its own for.
MutableTensor = Tensor
"""A tensor that the operator writes: ``Tensor(a!)``, the next of them ``Tensor(b!)``."""

IntPair = Sequence[int]
"""Two integers, or none: ``int[2]``."""

SymInt = int
"""A size that stays a symbol while it is traced."""

BoolPair = Sequence[bool]
"""Two truths: ``bool[2]``."""

Result = Union[Tensor, Sequence[Tensor], None]
Stage = Callable[[Any], Result]
"""From a checked call to its result: real tensors, fake ones, or a graph's."""

P = ParamSpec("P")
R = TypeVar("R")

_TYPES = {
    "Tensor": "Tensor",
    "MutableTensor": "Tensor({}!)",
    "Sequence[Tensor]": "Tensor[]",
    "Sequence[int]": "int[]",
    "IntPair": "int[2]",
    "BoolPair": "bool[2]",
    "Sequence[SymInt]": "SymInt[]",
    "Sequence[float]": "float[]",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "torch.dtype": "ScalarType",
    "SymInt": "SymInt",
}


class NodeCall(Protocol):
    """A GE node and the tensors that reach it, as the adapter of a node sees them."""

    def __getitem__(self, name: str) -> Tensor:
        """An input that has to be given."""

    def get(self, name: str) -> Tensor | None:
        """An input that may be missing."""

    def dynamic(self, name: str) -> list[Tensor]:
        """The members name0, name1, ... of a dynamic input."""

    def optional(self, name: str) -> list[Tensor]:
        """The same, where there may be none; TorchAIR gives an empty tensor for none."""

    def ints(self, name: str) -> list[int]:
        """The values of a small integer input."""

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default of GE's definition where the node leaves it out."""

    def dtype(self, name: str, default: int | None = None) -> torch.dtype:
        """An attribute that holds the number of a GE dtype."""

    def writable(self, name: str) -> Tensor:
        """An input that the node writes in place."""

    def output_dtype(self, index: int = 0) -> torch.dtype | None:
        """The dtype that the graph promises of an output, None where it does not say."""


@dataclass(frozen=True)
class GENode:
    """A GE operator that the record's operator is lowered to, and how to compute it.

    Attributes:
        type: the type of the node.
        arguments: from a node to the operator's arguments by name; the engine then calls ``check``
            and ``cpu`` with them, so that a node and an eager call are computed by one function.
        in_place: whether the node writes memory of its caller's.
    """

    type: str
    arguments: Callable[[NodeCall], dict[str, Any]]
    in_place: bool = False


@dataclass(frozen=True)
class Derivative:
    """The formula of an operator's derivative.

    Attributes:
        inputs: names of the arguments that a gradient flows to, where they are floats.
        backward: ``(op, problem, grads, wanted)`` to the gradients of the wanted inputs by name.
            op is the operator, problem the checked call that forward computed, grads one gradient
            for each result, None for one that none came to. What it computes is torch ops without a
            branch on data, and op itself.
        forward: ``(op, problem, tangents)`` to the tangent of the one result: tangents by name, of
            the inputs that have one. None where forward mode is refused.
    """

    inputs: tuple[str, ...]
    backward: Callable[
        [Callable[..., Any], Any, tuple[Any, ...], frozenset[str]], Mapping[str, Tensor]
    ]
    forward: Callable[[Callable[..., Any], Any, Mapping[str, Tensor]], Tensor] | None = None


@dataclass(frozen=True)
class Operator:
    """An operator of torch_npu, with everything this package adds to it.

    Attributes:
        name: the name in the namespace npu, ``name.overload`` for one of several overloads.
        check: arguments in, a checked value out. Its signature is the operator's, names, order and
            defaults; its docstring is the operator's, too.
        returns: what the schema says of results, ``"Tensor"`` or ``"(Tensor, Tensor)"``; ``"()"``
            for none, where every stage gives None.
        fake: the results without their numbers: shapes, dtypes, strides and device.
        cpu: the kernel on CPU, eager, and of a node of the type below.
        portable: the kernel of every device that is neither CPU nor NPU, in torch ops. None where
            there is none.
        decomposition: the operator as traceable torch ops that are core ATen, without a branch on
            data; None where there is none.
        derivative: the formula; None where backward is refused by a sentence.
        covers: from the arguments that are given, by name, to whether the call is ours. Where it is
            not, what torch_npu registered gets it. None where every call is ours.
        converter: module whose ``convert(arguments, problem)`` makes the GE nodes; None leaves it
            to TorchAIR's own.
        nodes: GE types that it is lowered to.
        limits: from a checked call to a sentence for each documented limit of the device that it
            exceeds.
        is_torch_npus: whether torch_npu alone defines it, so that it is not there without.
        writes: arguments that it writes although its schema does not say so.
        namespace: npu, or npu_lowering for an operator of this package's own.
        function: the name of its public function; None for its own name, "" for none.
        summary: what it computes, in one line.
        unsupported: arguments, or values of them, that are refused by a sentence.
        exactness: how exact the result is.
        source: where the arithmetic was read.
        signature: of ``check``, and so of the operator.
        arguments: their names, in order.
    """

    name: str
    check: Callable[..., Any]
    returns: str
    fake: Stage
    cpu: Stage
    portable: Stage | None = None
    decomposition: Stage | None = None
    derivative: Derivative | None = None
    covers: Callable[[Mapping[str, Any]], bool] | None = None
    converter: str | None = None
    nodes: tuple[GENode, ...] = ()
    limits: Callable[[Any], list[str]] | None = None
    is_torch_npus: bool = False
    writes: tuple[str, ...] = ()
    namespace: str = NAMESPACE
    function: str | None = None
    summary: str = ""
    unsupported: str = ""
    exactness: str = ""
    source: str = ""
    signature: inspect.Signature = field(init=False, repr=False)
    arguments: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read what ``check`` says once; attributes are what Dynamo follows."""
        object.__setattr__(self, "signature", inspect.signature(self.check))
        object.__setattr__(self, "arguments", tuple(self.signature.parameters))

    @property
    def qualname(self) -> str:
        """The name with its namespace."""
        return f"{self.namespace}::{self.name}"

    @property
    def packet(self) -> str:
        """The name that ``torch.ops.npu`` knows."""
        return self.name.partition(".")[0]

    @property
    def overload(self) -> Any:
        """The overload that the dispatcher has, whoever defined it."""
        name, _, overload = self.name.partition(".")
        return getattr(getattr(getattr(torch.ops, self.namespace), name), overload or "default")

    @property
    def written(self) -> tuple[str, ...]:
        """The arguments that it writes, whether its schema says so or not."""
        return tuple(
            name
            for name, parameter in self.signature.parameters.items()
            if name in self.writes or parameter.annotation == "MutableTensor"
        )

    @property
    def schema(self) -> str:
        """What is defined where torch_npu does not define it."""
        return schema_of(self.name, self.signature, self.returns)

    def problem(self, *args: Any, **kwargs: Any) -> Any:
        """The checked value of a call, of a schema that may be newer than this package.

        An argument that is not known here may be None; anything else is refused by its name.
        """
        unknown = [name for name in kwargs if name not in self.arguments]
        for name in unknown:
            if kwargs[name] is not None:
                self.refuse_unknown(name, kwargs[name])
        if unknown:
            kwargs = {name: value for name, value in kwargs.items() if name not in unknown}
        for name, value in chain(zip(self.signature.parameters, args), kwargs.items()):
            if isinstance(value, Tensor):
                _check_layout(name, value)
            elif isinstance(value, (list, tuple)):
                for each in value:
                    if isinstance(each, Tensor):
                        _check_layout(name, each)
        return self.check(*args, **kwargs)

    def by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that are given, by name."""
        return {**dict(zip(self.arguments, args)), **kwargs}

    def refuse_unknown(self, name: str, value: object) -> NoReturn:
        """Refuse an argument that a newer torch_npu's schema has."""
        raise NotImplementedError(
            f"{name} is not supported yet and must be None, got {described(value)}; "
            f"it is an argument of a newer {self.name}"
        )


def _check_layout(name: str, tensor: Tensor) -> None:
    """Hold any argument of any operator to plain strided numbers.

    Raises:
        TypeError: it is sparse, of another layout that has no strides, or quantised.
    """
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} must be a strided tensor, got layout {tensor.layout} on {tensor.device}; "
            "to_dense() makes one"
        )
    if tensor.is_quantized:
        raise TypeError(
            f"{name} must be a plain tensor, got quantised {dtype_name(tensor.dtype)} on "
            f"{tensor.device}; int_repr() gives its integers, dequantize() its floats"
        )


def schema_of(name: str, signature: inspect.Signature, returns: str) -> str:
    """The schema that a Python signature says, in the dispatcher's language.

    Raises:
        TypeError: an annotation has no counterpart there.
    """
    parts: list[str] = []
    star = False
    sets = iter("abcdefgh")
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        annotation = str(parameter.annotation)
        optional = annotation.endswith(" | None")
        kind = _TYPES.get(annotation.removesuffix(" | None"))
        if kind is None:
            raise TypeError(f"{name}: {parameter.name} is annotated {annotation}")
        if "{}" in kind:
            kind = kind.format(next(sets))
        text = f"{kind}{'?' if optional else ''} {parameter.name}"
        if parameter.default is not parameter.empty:
            default = parameter.default
            text += f'="{default}"' if isinstance(default, str) else f"={default}"
        parts.append(text)
    return f"{name}({', '.join(parts)}) -> {returns}"


def described(value: object) -> str:
    """An argument as a message shows it."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def public(
    check: Callable[P, Any],
    name: str,
    returns: type[R],
    choose: Callable[[dict[str, Any]], Any] | None = None,
) -> Callable[P, R]:
    """An operator as a Python function: the dispatcher's, with names, types and documentation.

    Args:
        check: the signature and the documentation.
        name: the operator's.
        returns: the type of what it returns.
        choose: from the keyword arguments, which it may change, to what is called; None for
            ``torch.ops.npu.NAME``.

    Returns:
        A function that calls it. What an older torch_npu's schema lacks is left out where it has
        its default.
    """
    signature = inspect.signature(check).replace(return_annotation=returns)
    # None is their default: an older torch_npu's schema need not have them.
    optional = frozenset(
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None
    )

    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        given = {
            key: value for key, value in kwargs.items() if value is not None or key not in optional
        }
        operator = getattr(torch.ops.npu, name) if choose is None else choose(given)
        result: R = operator(*args, **given)
        return result

    # Not functools.wraps, whose __wrapped__ would show Dynamo the wrong function.
    vars(function)["__signature__"] = signature
    function.__doc__ = check.__doc__
    function.__name__ = function.__qualname__ = name
    function.__module__ = "npu_lowering"
    return function
