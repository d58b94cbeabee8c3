"""Kernels of GE operators: matrix products, normalisation, activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.offdevice.engine.call import Call, Result
from npu_lowering.offdevice.engine.graph import GraphError
from npu_lowering.offdevice.engine.kernels.table import Function, Table

KERNELS = Table()


@KERNELS.kernel("SoftmaxV2")
def _softmax_v2(call: Call) -> Result:
    x = call["x"]
    dtype = torch.float32 if call.attr("half_to_float", False) else x.dtype
    return functional.softmax(x, _one_axis(call), dtype=dtype)


@KERNELS.kernel("LogSoftmaxV2")
def _log_softmax_v2(call: Call) -> Result:
    return functional.log_softmax(call["logits"], _one_axis(call))


def _one_axis(call: Call) -> int:
    axes = call.attr("axes", (-1,))
    if len(axes) != 1:
        raise GraphError(f"it is computed here over one axis, got {list(axes)}")
    return int(axes[0])


def _matmul(flags: tuple[str, str]) -> Function:
    def kernel(call: Call) -> Result:
        x1, x2 = (
            call[name].transpose(-1, -2) if call.attr(flag, False) else call[name]
            for name, flag in zip(("x1", "x2"), flags)
        )
        bias = call.get("bias")
        if call.get("offset_w") is not None or call.attr("offset_x", 0):
            raise GraphError("offset_w and offset_x are not computed here")
        if bias is not None and x1.dim() == x2.dim() == 2:
            return torch.addmm(bias, x1, x2)
        product = torch.matmul(x1, x2)
        return product if bias is None else product + bias

    return kernel


def _layer_norm(x: Tensor, axes: int, call: Call) -> Result:
    shape = x.shape[x.dim() - axes :]
    gamma, beta = (
        None if value is None else value.reshape(shape)
        for value in (call.get("gamma"), call.get("beta"))
    )
    return torch.native_layer_norm(x, shape, gamma, beta, float(call.attr("epsilon", 1e-5)))


@KERNELS.kernel("LayerNormV3")
def _layer_norm_v3(call: Call) -> Result:
    x = call["x"]
    return _layer_norm(x, x.dim() - int(call.attr("begin_norm_axis", 0)) % x.dim(), call)


@KERNELS.kernel("LayerNormV4")
def _layer_norm_v4(call: Call) -> Result:
    return _layer_norm(call["x"], call["normalized_shape"].numel(), call)


@KERNELS.kernel("Gelu")
def _gelu(call: Call) -> Result:
    return functional.gelu(call["x"], approximate="tanh")


@KERNELS.kernel("GeluV2")
def _gelu_v2(call: Call) -> Result:
    return functional.gelu(call["x"], approximate=str(call.attr("approximate", "none")))


@KERNELS.kernel("Swish")
def _swish(call: Call) -> Result:
    x, scale = call["x"], float(call.attr("scale", 1.0))
    return functional.silu(x) if scale == 1.0 else x * torch.sigmoid(x * scale)


@KERNELS.kernel("LeakyRelu")
def _leaky_relu(call: Call) -> Result:
    return functional.leaky_relu(call["x"], float(call.attr("negative_slope", 0.0)))


@KERNELS.kernel("SoftplusV2")
def _softplus_v2(call: Call) -> Result:
    return functional.softplus(
        call["x"], float(call.attr("beta", 1.0)), float(call.attr("threshold", 20.0))
    )


def _activation(name: str) -> Function:
    function = getattr(functional, name, None) or getattr(torch, name)

    def kernel(call: Call) -> Result:
        result: Tensor = function(call["x"])
        return result

    return kernel


@KERNELS.kernel("GLU")
def _glu(call: Call) -> Result:
    return functional.glu(call["x"], int(call.attr("dim", -1)))


for _type, _function in {
    "BatchMatMul": _matmul(("adj_x1", "adj_x2")),
    "BatchMatMulV2": _matmul(("adj_x1", "adj_x2")),
    "HardSwish": _activation("hardswish"),
    "MatMul": _matmul(("transpose_x1", "transpose_x2")),
    "MatMulV2": _matmul(("transpose_x1", "transpose_x2")),
    "Relu": _activation("relu"),
    "Sigmoid": _activation("sigmoid"),
    "Softplus": _activation("softplus"),
    "Tanh": _activation("tanh"),
}.items():
    KERNELS.add(_type, _function)
