"""The storage format of a tensor, which on a device is a property of its storage.

Off the device every storage holds plain numbers, and a format is a note about it: every tensor that
shares the storage has it, be it a parameter, a detached tensor or a view as another dtype.
"""

from __future__ import annotations

import threading

import torch
from torch.multiprocessing.reductions import StorageWeakRef

# torch_npu's Format: what a storage has that nothing was cast to, by the dimensions of its tensor.
_ND = 2
_OF_IMAGES = {4: 0, 5: 30}  # NCHW, NCDHW

# A weak reference keeps a storage's identity, but not its memory, until it is dropped here.
_formats: dict[StorageWeakRef, int] = {}
_lock = threading.Lock()
_FEWEST = 64
_limit = _FEWEST


def remember(tensor: torch.Tensor, acl_format: int) -> None:
    """Note that the storage of a tensor has a format, in place of what was noted before."""
    note(tensor.untyped_storage(), acl_format)


def note(storage: torch.UntypedStorage, acl_format: int) -> None:
    """The same, of a storage itself."""
    global _limit
    with _lock:
        _formats[StorageWeakRef(storage)] = int(acl_format)
        if len(_formats) > _limit:
            for gone in [noted for noted in _formats if noted.expired()]:
                del _formats[gone]
            _limit = max(_FEWEST, 2 * len(_formats))


def format_of(tensor: torch.Tensor) -> int:
    """The format of a tensor's storage, as torch_npu numbers them.

    Returns:
        What was remembered; else ND, 2, and for 4-D and 5-D tensors NCHW and NCDHW, as a device.
    """
    found = noted(tensor.untyped_storage())
    return _OF_IMAGES.get(tensor.dim(), _ND) if found is None else found


def noted(storage: torch.UntypedStorage) -> int | None:
    """What was remembered of a storage; None if nothing was."""
    return _formats.get(StorageWeakRef(storage))
