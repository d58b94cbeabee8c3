"""The mode under which nothing is computed and every call is taken down."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _pop_mode,
    _push_mode,
)

from npu_lowering.offdevice.capture import attention, calls, memory, order, refusals, state
from npu_lowering.offdevice.capture.calls import Call, Slot, Step
from npu_lowering.offdevice.capture.refusals import CaptureError

_aten = torch.ops.aten

_EMPTY = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_permuted.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
# They say a number of a tensor's values.
_VALUES = {
    _aten._local_scalar_dense.default: ".item(), int(), float(), bool() or `if` of a tensor",
    _aten.equal.default: "torch.equal()",
    _aten.is_nonzero.default: "bool() or `if` of a tensor",
    _aten.allclose.default: "torch.allclose()",
}
# Views that their schemas do not call so.
_VIEWS = {_aten._unsafe_view.default, _aten.lift_fresh.default}

_WRITING = {
    _aten.copy_.default,
    _aten.fill_.Scalar,
    _aten.fill_.Tensor,
    _aten.zero_.default,
    _aten._foreach_copy_.default,
}


@dataclass
class _Made:
    """Memory that a capture made, whole, and whether it is first read or written."""

    memory: torch.Tensor
    access: str | None = None


class Recorder(TorchDispatchMode):
    """Takes down the calls of one capture.

    Attributes:
        steps: What a replay does, in order.
        pool: Where the memory of results comes from.
        constants: Storages that came from the host, which the graph keeps.
        hazards: What was found of calls that nothing orders.
    """

    def __init__(self, pool: memory.Pool, stream: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.pool = pool
        self.stream = stream
        self.thread = threading.get_ident()
        self.order = order.Order()
        self.streams = {stream}  # that take part
        self.generators: list[torch.Generator] = [torch.default_generator]
        self.constants: list[torch.UntypedStorage] = []
        self.failure: BaseException | None = None
        self.group: int | None = None  # the step that the open task group begins with
        self.borrowed: list[torch.UntypedStorage] = []  # record_stream() keeps them to the end
        self.made = 0  # bytes of results
        self._fake = fake_tensor.FakeTensorMode()
        self._made: list[_Made] = []
        self._latest: dict[int, _Made] = {}  # by address
        self._needed: list[tuple[int, int]] = []  # addresses from, to, read before they are written
        self._known: set[int] = set()  # of the constants, those that the host still knows
        self._seen: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Dynamo is to compile under a capture as it does on a device, where no mode is."""
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """As above, for the compilation itself."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_ours(args, kwargs):
            return func(*args, **kwargs)
        try:
            return self._take(func, args, kwargs)
        except Exception as error:
            self.failure = error
            raise

    def _take(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if not isinstance(func, torch._ops.OpOverload):
            raise NotImplementedError(
                f"{func} cannot be captured here: only operators with a schema can"
            )
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if _is_tensor(leaf)]
        if func in _VALUES:
            if all(tensor.untyped_storage()._cdata in self._known for tensor in tensors):
                return func(*args, **kwargs)
            raise refusals.needs_value(_VALUES[func])
        if func is _aten.record_stream.default:
            self.borrowed.append(tensors[0].untyped_storage())
            return None
        if func is _aten.lift_fresh.default:
            self.constants.append(tensors[0].untyped_storage())
            self._known.add(tensors[0].untyped_storage()._cdata)
        if torch.Tag.inplace_view in func.tags:
            self._seen.pop(id(tensors[0]), None)  # it may have other memory now, and be meant to
        else:
            self._remember(tensors)
        if _is_view(func, args) or not (tensors or func._schema.returns):
            return func(*args, **kwargs)
        stream = state.stream()
        if stream not in self.streams:
            raise CaptureError(
                f"{func} is called on stream {stream}, which takes no part in the capture on "
                f"stream {self.stream}: a device runs it at once, on memory that nothing has been "
                f"computed into yet. Let stream {stream} wait for an event recorded on stream "
                f"{self.stream} during the capture (stream.wait_stream(...)) before it is used"
            )
        self._check_random(func, kwargs)
        written = calls.written_arguments(func, args, kwargs)
        hidden = calls.has_hidden_out(func)
        self._known -= {tensor.untyped_storage()._cdata for tensor in _tensors(written)}
        outputs = () if hidden else self._results(func, args, kwargs)
        fresh: list[torch.Tensor] = []

        def make(value: torch.Tensor) -> torch.Tensor:
            fresh.append(self.allocate(value, stream))
            return fresh[-1]

        result = tuple(kwargs["out"]) if hidden else calls.returned(func, outputs, written, make)
        if func in _EMPTY or func._schema.name in attention.ALLOCATING:
            return result
        call = Call(
            func,
            pytree.tree_map_only(torch.Tensor, self._slot, (tuple(args), dict(kwargs))),
            [self._slot(leaf) for leaf in _tensors(written)],
            [Slot(leaf) for leaf in fresh],
            stream,
        )
        self._order(call, tensors, _tensors(written), fresh)
        self.steps.append(call)
        return result

    def _slot(self, value: torch.Tensor) -> Slot:
        slot = Slot(value)
        if any(value.untyped_storage()._cdata == held._cdata for held in self.constants):
            slot.keep(value.untyped_storage())
        return slot

    def _results(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Results with the shapes of those that a call would give."""
        returns = func._schema.returns
        if all(item.alias_info is not None and item.alias_info.is_write for item in returns):
            return tuple(None for _ in returns) if len(returns) > 1 else None
        try:
            with self._fake:
                fake_args, fake_kwargs = pytree.tree_map_only(torch.Tensor, _like, (args, kwargs))
                return func(*fake_args, **fake_kwargs)
        except (
            fake_tensor.DynamicOutputShapeException,
            fake_tensor.DataDependentOutputException,
        ) as error:
            raise refusals.needs_shape(str(func)) from error

    def allocate(self, like: torch.Tensor, stream: int) -> torch.Tensor:
        """Memory of the capture, poisoned, in the shape of ``like``."""
        if like.layout != torch.strided:
            raise NotImplementedError(f"a captured call gives a tensor of layout {like.layout}")
        nbytes = like.untyped_storage().nbytes()
        self.made += nbytes
        storage = self.pool.allocate(nbytes, stream)
        whole = memory.tensor(storage, like.dtype, (nbytes // like.element_size(),), (1,))
        memory.poison(whole)
        own = memory.unowned(storage.data_ptr(), nbytes)
        assert own is not None
        made = _Made(memory.tensor(own, like.dtype, whole.shape, (1,)))
        self._made.append(made)
        self._latest[storage.data_ptr()] = made
        return memory.tensor(storage, like.dtype, like.shape, like.stride(), like.storage_offset())

    def _check_random(self, func: Any, kwargs: dict[str, Any]) -> None:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return
        generator: Any = kwargs.get("generator")
        known: list[Any] = self.generators
        if generator is not None and all(generator._cdata != other._cdata for other in known):
            raise CaptureError(
                f"{func} during capture draws from a generator that the graph does not know, so "
                "every replay would draw the same numbers: call "
                "graph.register_generator_state(generator) before the capture"
            )

    def _order(
        self,
        call: Call,
        tensors: list[torch.Tensor],
        written: list[torch.Tensor],
        fresh: list[torch.Tensor],
    ) -> None:
        read = [tensor for tensor in tensors if not any(tensor is other for other in written)]
        for tensor in read:
            self._first_access(tensor, "read")
        for tensor in written:
            self._first_access(tensor, "written" if _only_writes(call.operator) else "read")
        for tensor in fresh:
            self._first_access(tensor, "written")
        conflict = self.order.add(
            f"call {len(self.steps)}, {call.name}",
            call.stream,
            [order.Area.of(tensor) for tensor in read],
            [order.Area.of(tensor) for tensor in [*written, *fresh]],
        )
        if conflict is not None:
            raise CaptureError(_named(conflict, call))

    def _first_access(self, tensor: torch.Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        made = self._latest.get(storage.data_ptr())
        if made is not None and made.access is None:
            whole = tensor.numel() * tensor.element_size() >= made.memory.nbytes
            made.access = kind if whole else "read"
        if made is None or made.access == "read":
            self._needed.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))

    def wait_for(self, event: Any, stream: int) -> None:
        """Let a replay wait for an external event."""
        self.steps.append(calls.Wait(event, stream))

    def reset_event(self, event: Any, stream: int) -> None:
        """Let a replay reset an external event."""
        self.steps.append(calls.Reset(event, stream))

    def poisoned(self) -> list[torch.Tensor]:
        """Memory that a replay begins without: what it writes before it reads it."""
        return [
            made.memory
            for made in self._made
            if made.access == "written"
            and not any(
                made.memory.data_ptr() < end and begin < made.memory.data_ptr() + made.memory.nbytes
                for begin, end in set(self._needed)
            )
        ]

    def _remember(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) not in self._seen and memory.find(tensor.data_ptr()) is None:
                self._seen[id(tensor)] = (weakref.ref(tensor), tensor.data_ptr())

    def moved(self) -> list[torch.Tensor]:
        """Tensors from before the capture that have other memory now."""
        found = []
        for reference, address in self._seen.values():
            tensor = reference()
            if tensor is not None and tensor.data_ptr() != address:
                found.append(tensor)
        return found


def _named(conflict: order.Conflict, call: Call) -> str:
    earlier, later = conflict
    does = {True: "writes", False: "reads"}
    return (
        f"{later.call} on stream {later.stream} {does[later.is_write]} memory that {earlier.call} "
        f"on stream {earlier.stream} {does[earlier.is_write]}, and no event orders the two: on a "
        f"device either may come first, and the result is wrong now and then. Let stream "
        f"{later.stream} wait for stream {earlier.stream} in between (wait_stream(), or "
        f"record_event() and wait_event()). The call: {call}"
    )


def push_below(mode: TorchDispatchMode) -> None:
    """Enter a mode as the one that is asked last: on a device no mode of the user's is below it."""
    above = [_pop_mode() for _ in range(_depth())]
    _push_mode(mode)
    for other in reversed(above):
        _push_mode(other)


def remove(mode: TorchDispatchMode) -> None:
    """Leave a mode wherever it is."""
    modes = [_pop_mode() for _ in range(_depth())]
    for other in reversed(modes):
        if other is not mode:
            _push_mode(other)


def _depth() -> int:
    return int(torch._C._len_torch_dispatch_stack())


def compute(step: Call) -> None:
    """Run a call as a device does in a replay: unseen by autograd and by every mode."""
    with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
        step.run()


def _is_ours(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call is of tensors with memory, and not of a compiler that traces."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return False
    return all(
        refusals.is_plain(leaf)
        for leaf in pytree.tree_leaves((args, kwargs))
        if isinstance(leaf, torch.Tensor)
    )


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _only_writes(operator: Any) -> bool:
    """Whether what an operator writes is not read by it first."""
    return (
        operator in _WRITING
        or calls.has_hidden_out(operator)
        or any(item.is_out for item in operator._schema.arguments)
    )


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _like(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")


def _is_view(func: Any, args: Any) -> bool:
    """Whether a call changes no memory, only how it is seen."""
    if func in _VIEWS:
        return True
    if torch.Tag.inplace_view in func.tags:
        if func is _aten.resize_.default and args[0].untyped_storage().nbytes() < (
            torch.empty(args[1], dtype=args[0].dtype, device="meta").nbytes
        ):
            raise NotImplementedError(
                "Tensor.resize_() to more memory cannot be captured here: make a tensor of the "
                "greatest size before the capture"
            )
        return True
    alias = [item.alias_info for item in func._schema.returns]
    if any(item is not None and not item.is_write for item in alias):
        return True
    has_tensor = any("Tensor" in str(item.type) for item in func._schema.returns)
    writes = any(
        item.alias_info is not None and item.alias_info.is_write for item in func._schema.arguments
    )
    return bool(func._schema.returns) and not has_tensor and not writes
