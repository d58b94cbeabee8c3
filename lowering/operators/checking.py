"""What contracts are written with: each holds one argument to one rule, in one sentence.

Only metadata is read, so the rules hold alike for real, fake and meta tensors, and no rule
specialises a symbolic size that it merely compares. Every message names the argument, what was
expected and what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable

import torch
from torch import Tensor

from npu_lowering.operators.operator import described, dtype_name
from npu_lowering.operators.value_checks import are_checked
from npu_lowering.torch_internals import is_compiling

# Under a tracer a size may be a SymInt, which torch's own annotations call an int as well.
Size = int


def is_symbolic(size: object) -> bool:
    """Whether a size is a tracer's symbol and not a number."""
    return isinstance(size, torch.SymInt)


def require(
    error: type[Exception], condition: bool | torch.SymBool, message: Callable[[], str]
) -> None:
    """As torch._check; a condition on symbols becomes a guard or a runtime assertion there."""
    if isinstance(condition, bool):
        if not condition:
            raise error(message())
    elif is_compiling():  # Dynamo takes no message that closes over a size
        torch._check(condition)
    else:
        torch._check_with(error, condition, message)


def required(name: str, tensor: Tensor | None, what: str) -> Tensor:
    """A tensor that has to be given; torch takes None for any tensor from Python.

    Args:
        name: of the argument.
        tensor: what came.
        what: its dtype and form, for the message.

    Raises:
        TypeError: it is None.
    """
    if tensor is None:
        raise TypeError(f"{name} is required: expected a tensor, {what}, got None")
    return tensor


def must_be_none(name: str, value: object, supported: str) -> None:
    """Refuse an argument that is not built.

    Raises:
        NotImplementedError: it is given; the message says what is supported instead.
    """
    if value is not None:
        raise NotImplementedError(
            f"{name} is not supported yet and must be None, got {described(value)}; {supported}"
        )


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Hold a tensor to its dtypes.

    Raises:
        TypeError: it has another one.
    """
    if tensor.dtype not in allowed:
        names = " or ".join(dtype_name(dtype) for dtype in allowed)
        raise TypeError(f"{name} must be {names}, got {dtype_name(tensor.dtype)}")


def check_rank(name: str, tensor: Tensor, rank: int, form: str) -> None:
    """Hold a tensor to its number of dimensions.

    Raises:
        ValueError: it has another one.
    """
    require(
        ValueError,
        tensor.dim() == rank,
        lambda: f"{name} must be {rank}-D {form}, got shape {tuple(tensor.shape)}",
    )


def check_shape(name: str, tensor: Tensor, form: str, sizes: Sequence[Size]) -> None:
    """Hold a tensor to its shape.

    Raises:
        ValueError: it has another one.
    """

    def message() -> str:
        return f"{name} must be {form} = {tuple(sizes)}, got shape {tuple(tensor.shape)}"

    require(ValueError, tensor.dim() == len(sizes), message)
    for size, expected in zip(tensor.shape, sizes):
        require(ValueError, size == expected, message)


def check_choice(name: str, value: object, choices: Mapping[object, str]) -> None:
    """Hold a scalar to its few values.

    Raises:
        ValueError: it has another one; the message lists them with their meaning.
    """
    if value not in choices:
        listed = [f"{code!r} ({what})" if what else repr(code) for code, what in choices.items()]
        expected = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_devices(first: str, tensors: Mapping[str, Tensor | None]) -> None:
    """Hold all tensors to one device, that of the first.

    Raises:
        ValueError: one of them lies on another.
    """
    device = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise ValueError(
                f"{name} must be on the device of {first}, {device}, got {tensor.device}"
            )


def check_indices(name: str, values: Tensor, first: int | None, end: int) -> None:
    """Hold the values of indices to ``[first, end)``; for kernels, since it reads data.

    Args:
        name: of the argument.
        values: any shape.
        first: the least, None where a negative one means something of its own.
        end: one more than the largest.

    Raises:
        IndexError: one lies outside; the message names the first.
    """
    if not values.numel() or not are_checked(values):
        return
    flat = values.reshape(-1)
    outside = flat >= end if first is None else (flat >= end) | (flat < first)
    if not bool(outside.any()):
        return
    place = int(outside.nonzero()[0])
    allowed = f"be less than {end}" if first is None else f"lie in [{first}, {end})"
    raise IndexError(
        f"{name} must {allowed}, got {name}[{place}] = {int(flat[place])} (counted in the flat "
        "tensor)"
    )


# Some schemas say int where they mean a dtype: the number that torch gives it.
_DTYPE_CODES = {
    1: torch.int8,
    3: torch.int32,
    5: torch.float16,
    6: torch.float32,
    15: torch.bfloat16,
}


def dtype_of_code(name: str, code: int, *allowed: torch.dtype) -> torch.dtype:
    """The dtype that a number stands for; torch makes the number of a dtype passed as an int.

    Raises:
        TypeError: it stands for none of those allowed.
    """
    dtype = _DTYPE_CODES.get(code)
    if dtype is None or dtype not in allowed:
        names = " or ".join(f"torch.{dtype_name(each)}" for each in allowed)
        got = f"torch.{dtype_name(dtype)}" if dtype is not None else f"the code {code}"
        raise TypeError(f"{name} must be {names}, got {got}")
    return dtype


def code_of(dtype: torch.dtype) -> int:
    """The number that torch gives a dtype."""
    return next(code for code, each in _DTYPE_CODES.items() if each == dtype)
