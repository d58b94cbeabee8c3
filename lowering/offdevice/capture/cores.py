"""How many cores a stream may use: kept and told, while results are the same with any number."""

# ruff: noqa: A002, ARG001 -- the arguments are those of torch_npu's C++

from __future__ import annotations

_CORES = (20, 40)  # for matrices and for vectors, of an Ascend 910B
_KINDS = ("cube_num", "vector_num")

_device_limit = list(_CORES)
_stream_limits: dict[int, list[int]] = {}


def set_stream_limit(
    stream_id: int,
    device_index: int,
    device_type: int,
    type: int,
    value: int,
) -> None:
    """``torch_npu._C._npu_set_stream_res_limit``."""
    if not 0 < value <= _device_limit[type]:
        raise ValueError(
            f"{_KINDS[type]} must be from 1 to {_device_limit[type]}, the device's, got {value}"
        )
    _stream_limits.setdefault(stream_id, list(_device_limit))[type] = value


def stream_limit(stream_id: int, device_index: int, device_type: int, type: int) -> int:
    """``torch_npu._C._npu_get_stream_res_limit``."""
    return _stream_limits.get(stream_id, _device_limit)[type]


def reset_stream_limit(stream_id: int, device_index: int, device_type: int) -> None:
    """``torch_npu._C._npu_reset_stream_res_limit``."""
    _stream_limits.pop(stream_id, None)


def set_device_limit(device: int, type: int, value: int) -> None:
    """``torch_npu._C._npu_set_device_res_limit``."""
    if not 0 < value <= _CORES[type]:
        raise ValueError(f"{_KINDS[type]} must be from 1 to {_CORES[type]}, got {value}")
    _device_limit[type] = value


def device_limit(device: int, type: int) -> int:
    """``torch_npu._C._npu_get_device_res_limit``."""
    return _device_limit[type]


def reset_device_limit(device: int) -> None:
    """``torch_npu._C._npu_reset_device_res_limit``."""
    _device_limit[:] = _CORES
