"""What a capture keeps of a call, and how a replay makes it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from npu_lowering.offdevice.capture import memory


class FreedMemoryError(RuntimeError):
    """A replay would read or write memory that is gone."""


class Slot:
    """A tensor of a captured call: an address and a layout, which keep no memory alive.

    On a device a graph holds addresses. What else becomes of the tensor is not its business: a
    freed one is read all the same, and whatever lies there by then.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self.dtype = value.dtype
        self.size = tuple(value.shape)
        self.stride = tuple(value.stride())
        self.offset = value.storage_offset()
        self.is_conj, self.is_neg = value.is_conj(), value.is_neg()
        storage = value.untyped_storage()
        self.address = storage.data_ptr()
        self.segment = memory.find(self.address) if storage.nbytes() else None
        self._own: torch.Tensor | None = None
        self._outer: StorageWeakRef | None = None
        if self.segment is not None:
            own = memory.unowned(self.address, storage.nbytes())
            assert own is not None
            self._own = self._over(own)
        elif not storage.nbytes():
            self._own = value
        else:
            self._outer = StorageWeakRef(storage)

    def keep(self, storage: torch.UntypedStorage) -> None:
        """Keep memory that is no device's: a number that came from the host, baked in."""
        self._own = self._over(storage)

    def tensor(self) -> torch.Tensor:
        """The tensor, as far as its memory is there.

        Raises:
            FreedMemoryError: It is not.
        """
        if self._own is not None:
            if self.segment is not None and self.segment.is_released:
                raise FreedMemoryError(
                    f"{self} is memory of a graph pool that is gone: every graph in it was reset "
                    "or dropped"
                )
            return self._own
        assert self._outer is not None
        storage: Any = torch.UntypedStorage._new_with_weak_ptr(self._outer.cdata)
        if storage is None:
            raise FreedMemoryError(
                f"{self} was freed since the capture: a graph holds the address of a tensor and "
                "does not keep it alive. Keep the tensor, and copy_() new values into it instead "
                "of making a new one"
            )
        return self._over(storage)

    def _over(self, storage: torch.UntypedStorage) -> torch.Tensor:
        made = memory.tensor(storage, self.dtype, self.size, self.stride, self.offset)
        made = torch._neg_view(made) if self.is_neg else made
        return made.conj() if self.is_conj else made

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.size)} at {self.address:#x}"


@dataclass
class Call:
    """A captured call.

    Attributes:
        operator: What is called.
        arguments: Its arguments and keyword arguments, tensors as slots.
        written: The slots of arguments that it writes.
        fresh: The slots that its new results are copied into, in the order of the results.
        stream: The stream it was called on.
    """

    operator: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    written: list[Slot]
    fresh: list[Slot]
    stream: int

    @property
    def name(self) -> str:
        """The operator's name, with its overload."""
        return str(self.operator).removesuffix(".default")

    @property
    def read(self) -> list[Slot]:
        """The slots of all its arguments."""
        return slots(self.arguments)

    def run(self) -> None:
        """Compute it, into the memory of the capture."""
        args, kwargs = pytree.tree_map_only(Slot, Slot.tensor, self.arguments)
        results = self.operator(*args, **kwargs)
        if self.fresh:
            new = _tensors_of_new(self.operator, results)
            for slot, result in zip(self.fresh, new):
                slot.tensor().copy_(result)

    def __str__(self) -> str:
        args, kwargs = pytree.tree_map_only(torch.Generator, lambda _: "generator", self.arguments)
        given = [*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())]
        made = f" -> {', '.join(map(str, self.fresh))}" if self.fresh else ""
        return f"{self.name}({', '.join(given)}){made}"


@dataclass
class Wait:
    """A replay goes on once an external event is recorded."""

    event: Any
    stream: int


@dataclass
class Reset:
    """An external event is to be recorded anew."""

    event: Any
    stream: int


Step = Union[Call, Wait, Reset]


def slots(tree: Any) -> list[Slot]:
    """The slots in whatever holds them."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Slot)]


def has_hidden_out(operator: Any) -> bool:
    """Whether an operator writes and returns ``out``, and its schema says neither.

    So it is with attention in torch_npu.
    """
    arguments = operator._schema.arguments
    return operator._overloadname == "out" and all(
        argument.alias_info is None for argument in arguments
    )


def written_arguments(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that an operator writes, by the alias set of its schema."""
    if has_hidden_out(operator):
        return {"out": kwargs["out"]}
    found = {}
    for index, argument in enumerate(operator._schema.arguments):
        alias = argument.alias_info
        if alias is None or not alias.is_write:
            continue
        given = args[index] if index < len(args) else kwargs.get(argument.name)
        if given is not None:
            found[_set(alias)] = given
    return found


def returned(
    operator: Any, results: Any, written: dict[str, Any], make: Callable[[Any], Any]
) -> Any:
    """What a call returns: written arguments as they are, and what ``make`` makes of the rest."""
    returns = operator._schema.returns
    if not returns:
        return None
    several = len(returns) > 1
    values = results if several else (results,)
    given = []
    for declared, value in zip(returns, values):
        alias = declared.alias_info
        if alias is not None and alias.is_write:
            given.append(written[_set(alias)])
        else:
            given.append(pytree.tree_map_only(torch.Tensor, make, value))
    return tuple(given) if several else given[0]


def _tensors_of_new(operator: Any, results: Any) -> list[torch.Tensor]:
    new: list[torch.Tensor] = []
    returned(operator, results, _Anything(), lambda value: new.append(value))
    return new


class _Anything(dict[str, Any]):
    def __missing__(self, key: str) -> None:
        return None


def _set(alias: Any) -> str:
    return ",".join(sorted(alias.before_set))
