"""Memory that captures allocate from: pools of segments, handed out and taken back as on a device.

What a capture allocates keeps its address for every replay, and memory whose last tensor is gone
is given out again: within the capture, and to other captures in the same pool. So two graphs in
one pool overwrite each other here where they would on a device.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import threading
import weakref
from collections.abc import Iterable, Sequence

import torch

_ALIGNMENT = 512
_SEGMENT = 2 << 20

_lock = threading.RLock()
# Every segment that exists: where they begin, in order, and each by that.
_beginnings: list[int] = []
_segments: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()
_tokens = itertools.count(1)


class Segment:
    """A stretch of memory of one pool and one stream.

    Attributes:
        address: Where it begins.
        size: Its bytes.
        allocated: Offset of each block that is given out, with its size and a token.
        is_released: Whether its pool is gone, so that a device would have given it back.
    """

    def __init__(self, size: int, stream: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8)
        self.address = self._memory.data_ptr()
        self.size = size
        self.stream = stream
        self.allocated: dict[int, tuple[int, int]] = {}
        self.is_released = False
        with _lock:
            bisect.insort(_beginnings, self.address)
            _segments[self.address] = self
        weakref.finalize(self, _forget, self.address)

    def gap(self, size: int) -> int | None:
        """The offset of the first stretch of ``size`` bytes that is free."""
        offset = 0
        for begin in sorted(self.allocated):
            if begin - offset >= size:
                return offset
            offset = begin + self.allocated[begin][0]
        return offset if self.size - offset >= size else None


class Pool:
    """What graphs that share memory allocate from.

    Attributes:
        handle: What torch_npu calls the pool's id.
        graphs: How many graphs use it.
    """

    def __init__(self, handle: tuple[int, int]) -> None:
        self.handle = handle
        self.graphs = 0
        self.segments: list[Segment] = []

    def allocate(self, nbytes: int, stream: int) -> torch.UntypedStorage:
        """Memory for a capture on ``stream``; free again when the storage is gone."""
        size = max(_rounded(nbytes, _ALIGNMENT), _ALIGNMENT)
        with _lock:
            segment, offset = self._place(size, stream)
            token = next(_tokens)
            segment.allocated[offset] = (size, token)
        storage, buffer = _storage_at(segment, offset, nbytes)
        weakref.finalize(buffer, _free, segment, offset, token)
        return storage

    def _place(self, size: int, stream: int) -> tuple[Segment, int]:
        for segment in self.segments:
            if segment.stream == stream:
                offset = segment.gap(size)
                if offset is not None:
                    return segment, offset
        segment = Segment(_rounded(size, _SEGMENT), stream)
        self.segments.append(segment)
        return segment, 0

    def state(self) -> dict[int, int]:
        """The address and size of every block that is given out."""
        return {
            segment.address + offset: size
            for segment in self.segments
            for offset, (size, _) in segment.allocated.items()
        }

    def restore(self, state: dict[int, int], owners: Iterable[torch.UntypedStorage]) -> None:
        """Make the blocks of ``state`` those that are given out, whoever has them now.

        Args:
            state: What :meth:`state` gave.
            owners: Storages at such addresses, each of which frees its block when it goes.
        """
        with _lock:
            for segment in self.segments:
                segment.allocated = {
                    address - segment.address: (size, next(_tokens))
                    for address, size in state.items()
                    if segment.address <= address < segment.address + segment.size
                }
            for storage in owners:
                segment = _of_pool(self, storage.data_ptr())
                offset = storage.data_ptr() - segment.address
                buffer = _buffers.get(storage._cdata)
                if offset not in segment.allocated or buffer is None:
                    raise RuntimeError(
                        f"no memory of graph pool {self.handle} is given out at "
                        f"{storage.data_ptr():#x}, so no tensor can own it"
                    )
                weakref.finalize(buffer, _free, segment, offset, segment.allocated[offset][1])

    def release(self) -> None:
        """One graph less; with the last, the memory goes back to the device."""
        self.graphs -= 1
        if self.graphs <= 0:
            for segment in self.segments:
                segment.is_released = True
            _pools.pop(self.handle, None)

    @property
    def reserved(self) -> int:
        """The bytes of its segments."""
        return sum(segment.size for segment in self.segments)


_pools: dict[tuple[int, int], Pool] = {}
_numbers = itertools.count(1)
# The buffer under a storage of ours, which dies with it.
_buffers: weakref.WeakValueDictionary[int, ctypes.Array[ctypes.c_char]] = (
    weakref.WeakValueDictionary()
)


def new_handle() -> tuple[int, int]:
    """The id of a pool that no graph uses yet."""
    return (0, next(_numbers))


def pool(handle: tuple[int, int] | None) -> Pool:
    """The pool of an id, or one of its own for a graph that names none."""
    if handle is None:
        handle = (next(_numbers), 0)
    if not (isinstance(handle, tuple) and [type(part) for part in handle] == [int, int]):
        raise TypeError(
            "pool must be what torch.npu.graph_pool_handle() or NPUGraph.pool() returns, a pair "
            f"of ints, got {handle!r}"
        )
    return _pools.setdefault(handle, Pool(handle))


def find(address: int) -> Segment | None:
    """The segment that an address lies in, whosever it is."""
    with _lock:
        index = bisect.bisect_right(_beginnings, address) - 1
        segment = _segments.get(_beginnings[index]) if index >= 0 else None
    return segment if segment is not None and address < segment.address + segment.size else None


def unowned(address: int, nbytes: int) -> torch.UntypedStorage | None:
    """A storage over memory of a pool that does not keep its block from being given out again.

    Returns:
        None if the memory is no pool's.
    """
    segment = find(address)
    if segment is None or address + nbytes > segment.address + segment.size:
        return None
    return _storage_at(segment, address - segment.address, nbytes)[0]


def tensor(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    size: Sequence[int],
    stride: Sequence[int],
    offset: int | torch.SymInt = 0,
) -> torch.Tensor:
    """A tensor over memory that is there already."""
    with torch._C._DisableTorchDispatch():  # no mode is to see how it is made
        return torch.empty(0, dtype=dtype).set_(storage, offset, tuple(size), tuple(stride))


def poison(memory: torch.Tensor) -> None:
    """Fill a tensor with what no computation can take for a number of its own."""
    if memory.dtype.is_floating_point or memory.dtype.is_complex:
        if memory.dtype.itemsize == 1:
            memory.view(torch.uint8).fill_(0xFF)  # a NaN in every float of eight bits
        else:
            memory.fill_(float("nan"))
    elif memory.dtype == torch.bool:
        memory.fill_(True)
    elif memory.dtype in _INTEGERS:
        memory.fill_(_INTEGERS[memory.dtype])
    else:
        memory.view(torch.uint8).fill_(0xFF)


_INTEGERS = {
    # No index, no count, no character: the least there is, or the greatest where that is 0.
    **{
        dtype: torch.iinfo(dtype).min
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    },
    torch.uint8: 255,
}


def _storage_at(
    segment: Segment, offset: int, nbytes: int
) -> tuple[torch.UntypedStorage, ctypes.Array[ctypes.c_char]]:
    buffer = (ctypes.c_char * max(nbytes, 1)).from_address(segment.address + offset)
    buffer._segment = segment  # type: ignore[attr-defined] # it lives as long as the buffer does
    storage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    _buffers[storage._cdata] = buffer
    return storage, buffer


def _free(segment: Segment, offset: int, token: int) -> None:
    with _lock:
        if segment.allocated.get(offset, (0, 0))[1] == token:  # else given to another since
            del segment.allocated[offset]


def _forget(address: int) -> None:
    with _lock:
        if address in _beginnings:
            _beginnings.remove(address)


def _of_pool(pool: Pool, address: int) -> Segment:
    for segment in pool.segments:
        if segment.address <= address < segment.address + segment.size:
            return segment
    raise RuntimeError(f"the address {address:#x} is not in graph pool {pool.handle}")


def _rounded(size: int, to: int) -> int:
    return -(-size // to) * to
