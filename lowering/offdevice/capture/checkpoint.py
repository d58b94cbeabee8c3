"""What upstream's compilers keep of a pool, and how they make tensors of an address again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from npu_lowering.offdevice.capture import memory, refusals, state

# Storages whose address upstream asked for while it captured, apart from pools.
_known: dict[int, StorageWeakRef] = {}


def is_npu(tensor: torch.Tensor) -> bool:
    """``Tensor.is_npu``: memory of the CPU is what is played as a device's.

    Upstream asks before it keeps the address of a tensor, to make one of it again.
    """
    if state.recorder() is not None and refusals.is_plain(tensor):
        storage = tensor.untyped_storage()
        _known[storage.data_ptr()] = StorageWeakRef(storage)
    return tensor.device.type == "cpu"


def storage(data_ptr: int, device: Any, nbytes: int) -> torch.UntypedStorage:
    """``torch_npu._C._construct_storage_from_data_pointer``."""
    del device
    if nbytes == 0:
        return torch.UntypedStorage(0)
    made = memory.unowned(data_ptr, nbytes)
    if made is None and data_ptr in _known:
        kept: Any = torch.UntypedStorage._new_with_weak_ptr(_known[data_ptr].cdata)
        made = kept if kept is not None and kept.nbytes() >= nbytes else None
    if made is None:
        raise RuntimeError(
            f"no memory of {nbytes} bytes at {data_ptr:#x}: it is of no graph pool, and the tensor "
            "that had it when the graph was captured is gone"
        )
    return made


def tensor(metadata: dict[str, Any], storage: torch.UntypedStorage) -> torch.Tensor:
    """``torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata``."""
    return memory.tensor(
        storage,
        metadata["dtype"],
        metadata["size"],
        metadata["stride"],
        metadata["storage_offset"],
    )


def weak_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """``torch_npu._C._weak_ref_tensor``: the same memory, which it does not keep.

    Memory that is no pool's it has to keep: to read it when it is gone would end the process.
    """
    whole = tensor.untyped_storage()
    weak = memory.unowned(whole.data_ptr(), whole.nbytes()) if whole.nbytes() else None
    return memory.tensor(
        whole if weak is None else weak,
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
    )


def state_of(device: int, handle: tuple[int, int]) -> tuple[memory.Pool, dict[int, int]]:
    """``torch_npu._C._npu_getCheckpointState``."""
    del device
    pool = memory.pool(tuple(handle))  # type: ignore[arg-type]
    return pool, pool.state()


def restore(
    device: int,
    kept: tuple[memory.Pool, dict[int, int]],
    stale: Sequence[int],
    owning: Sequence[int],
) -> None:
    """``torch_npu._C._npu_setCheckpointPoolState``.

    Args:
        device: The one there is.
        kept: What :func:`state_of` gave.
        stale: Storages, by their address in C++, that have their memory no longer.
        owning: Storages that own theirs from now on.
    """
    del device, stale  # whatever is not in the state is given out no longer
    pool, state = kept
    pool.restore(state, [torch.UntypedStorage._new_with_weak_ptr(cdata) for cdata in owning])
