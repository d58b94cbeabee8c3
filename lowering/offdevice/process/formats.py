"""Storage formats where there is no device: what asks for one, and what takes one along."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_lowering import torch_internals
from npu_lowering.operators import storage_format
from npu_lowering.operators.operator import NAMESPACE

# The key of a pickled tensor's metadata, which torch reads and leaves alone, here and elsewhere.
_KEY = "npu_lowering.acl_format="

_kernels: list[Any] = []  # handles; what they registered goes when they go


def play() -> None:
    """Let torch_npu's functions of formats work on CPU tensors, and copies keep their format."""
    library = torch.library.Library(NAMESPACE, "IMPL")
    _kernels.append(library)
    for name, kernel in {
        "get_npu_format": storage_format.format_of,
        "npu_format_cast_": _cast_like,
        "npu_format_cast_.acl_format": _cast_in_place,
    }.items():
        for key in ("CPU", "Meta"):
            if not torch_internals.has_kernel(f"{NAMESPACE}::{name}", key):
                library.impl(name, kernel, key)
    for copied in (torch.storage._StorageBase, torch.nn.Parameter):
        setattr(copied, "__deepcopy__", _copying(copied.__deepcopy__))  # noqa: B010 -- for mypy
    torch._utils.get_tensor_metadata = _writing(torch._utils.get_tensor_metadata)
    torch._utils.set_tensor_metadata = _reading(torch._utils.set_tensor_metadata)


def _cast_in_place(tensor: Tensor, acl_format: int) -> Tensor:
    """Give a tensor a storage of the format; others that shared its old one keep that."""
    if storage_format.format_of(tensor) != acl_format:
        offset, size, stride = tensor.storage_offset(), tensor.size(), tensor.stride()
        tensor.set_(tensor.untyped_storage().clone(), offset, size, stride)
        storage_format.remember(tensor, acl_format)
    return tensor


def _cast_like(tensor: Tensor, source: Tensor) -> Tensor:
    return _cast_in_place(tensor, storage_format.format_of(source))


def _copying(deepcopy: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(deepcopy)
    def copying(self: Any, memo: Any) -> Any:
        copied = deepcopy(self, memo)
        noted = storage_format.noted(_storage(self))
        if noted is not None:
            storage_format.note(_storage(copied), noted)
        return copied

    return copying


def _storage(value: Any) -> Any:
    """Of a tensor, or what is a storage itself."""
    return value.untyped_storage() if isinstance(value, Tensor) else value


def _writing(get_metadata: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(get_metadata)
    def writing(tensor: Tensor) -> dict[str, bool]:
        metadata: dict[str, bool] = get_metadata(tensor)
        noted = storage_format.noted(tensor.untyped_storage())
        return metadata if noted is None else {**metadata, f"{_KEY}{noted}": True}

    return writing


def _reading(set_metadata: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(set_metadata)
    def reading(tensor: Tensor, metadata: dict[str, bool]) -> None:
        set_metadata(tensor, metadata)
        for key in metadata:
            if key.startswith(_KEY):
                storage_format.remember(tensor, int(key[len(_KEY) :]))

    return reading
