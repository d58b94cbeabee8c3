"""Kernels of GE operators: matrix products, normalisation, activations, quantisation, routing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.offdevice.engine.call import Call, Kernel, Result
from npu_lowering.offdevice.engine.graph import GraphError


def _softmax_v2(call: Call) -> Result:
    x = call["x"]
    dtype = torch.float32 if call.attr("half_to_float", False) else x.dtype
    return functional.softmax(x, _one_axis(call), dtype=dtype)


def _log_softmax_v2(call: Call) -> Result:
    return functional.log_softmax(call["logits"], _one_axis(call))


def _one_axis(call: Call) -> int:
    axes = call.attr("axes", (-1,))
    if len(axes) != 1:
        raise GraphError(f"it is computed here over one axis, got {list(axes)}")
    return int(axes[0])


def _matmul(flags: tuple[str, str]) -> Kernel:
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


def _layer_norm_v3(call: Call) -> Result:
    x = call["x"]
    return _layer_norm(x, x.dim() - int(call.attr("begin_norm_axis", 0)) % x.dim(), call)


def _layer_norm_v4(call: Call) -> Result:
    return _layer_norm(call["x"], call["normalized_shape"].numel(), call)


def _rms_norm_of(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The device computes in float32 and rounds once, at the end."""
    wide = x.to(torch.float32)
    axes = tuple(range(x.dim() - gamma.dim(), x.dim()))
    rstd = torch.rsqrt(wide.pow(2).mean(axes, keepdim=True) + epsilon)
    return (wide * rstd * gamma.to(torch.float32)).to(x.dtype), rstd


def _rms_norm(call: Call) -> Result:
    return _rms_norm_of(call["x"], call["gamma"], float(call.attr("epsilon", 1e-6)))


def _add_rms_norm(call: Call) -> Result:
    total = call["x1"] + call["x2"]
    y, rstd = _rms_norm_of(total, call["gamma"], float(call.attr("epsilon", 1e-6)))
    return y, rstd, total


def _gelu(call: Call) -> Result:
    return functional.gelu(call["x"], approximate="tanh")


def _gelu_v2(call: Call) -> Result:
    return functional.gelu(call["x"], approximate=str(call.attr("approximate", "none")))


def _swish(call: Call) -> Result:
    x, scale = call["x"], float(call.attr("scale", 1.0))
    return functional.silu(x) if scale == 1.0 else x * torch.sigmoid(x * scale)


def _leaky_relu(call: Call) -> Result:
    return functional.leaky_relu(call["x"], float(call.attr("negative_slope", 0.0)))


def _softplus_v2(call: Call) -> Result:
    return functional.softplus(
        call["x"], float(call.attr("beta", 1.0)), float(call.attr("threshold", 20.0))
    )


def _activation(name: str) -> Kernel:
    function = getattr(functional, name, None) or getattr(torch, name)

    def kernel(call: Call) -> Result:
        result: Tensor = function(call["x"])
        return result

    return kernel


def _glu(call: Call) -> Result:
    return functional.glu(call["x"], int(call.attr("dim", -1)))


def _swi_glu(call: Call) -> Result:
    x = call["x"]
    left, right = x.to(torch.float32).chunk(2, int(call.attr("dim", -1)))
    return (functional.silu(left) * right).to(x.dtype)


def _dynamic_quant(call: Call) -> Result:
    """A scale for each row: its largest magnitude over 127; a row of zeros stays zeros."""
    if call.get("group_index") is not None or call.dtype("dst_type", 2) != torch.int8:
        raise GraphError("DynamicQuant is computed here to int8 and without group_index")
    wide = call["x"].to(torch.float32)
    smooth = call.get("smooth_scales")
    wide = wide if smooth is None else wide * smooth.to(torch.float32)
    scale = wide.abs().amax(-1, keepdim=True) / 127.0
    y = torch.where(scale == 0, 0.0, torch.round(wide / scale)).to(torch.int8)
    return y, scale.squeeze(-1)


def _moe_gating_top_k_softmax(call: Call) -> Result:
    x, k = call["x"], int(call.attr("k"))
    rows = x.numel() // x.shape[-1]
    scores = functional.softmax(x.to(torch.float32), -1)
    values, experts = torch.topk(scores, k, -1)
    finished = call.get("finished")
    if finished is not None:  # a finished row goes to an expert that does not exist
        experts = experts.masked_fill(finished.to(torch.bool).unsqueeze(-1), x.shape[-1])
    order = torch.arange(rows * k, dtype=torch.int32).reshape(k, rows).t()
    return values.to(x.dtype), experts.to(torch.int32), order.reshape(experts.shape)


def _moe_init_routing(call: Call) -> Result:
    """Rows of x, one for each expert they go to, expert after expert."""
    x, experts = call["x"], call["expert_idx"].reshape(-1)
    rows = x.shape[0]
    sorted_experts, order = torch.sort(experts, stable=True)
    came_from = call["row_idx"].reshape(-1)[order].to(torch.int64)
    went_to = torch.empty_like(call["row_idx"].reshape(-1))
    went_to[came_from] = torch.arange(experts.numel(), dtype=went_to.dtype)
    active = min(int(call.attr("active_num")), rows) * (experts.numel() // rows)
    return x[came_from[:active] % rows], went_to, sorted_experts


def _moe_compute_expert_tokens(call: Call) -> Result:
    experts = call["sorted_experts"]
    ends = torch.arange(int(call.attr("num_experts")), dtype=experts.dtype)
    return torch.searchsorted(experts, ends, right=True).to(experts.dtype)


_GROUPED_TAKEN = {"group_type": 0, "split_item": (2, 3), "act_type": 0, "transpose_x": False}


def _grouped_matmul(call: Call) -> Result:
    """Groups of consecutive rows of one x, each with its own matrix of one weight.

    TorchAIR gives the dynamic inputs it has nothing for as empty tensors.
    """
    for name, taken in _GROUPED_TAKEN.items():
        value = call.attr(name, -1 if name == "group_type" else 0)
        if value not in (taken if isinstance(taken, tuple) else (taken,)):
            raise GraphError(f"GroupedMatmul with {name} = {value} is not computed here")
    refused = ("bias", "offset", "antiquant_scale", "antiquant_offset")
    given = [name for name in refused if any(part.numel() for part in call.optional(name))]
    if given or len(call.dynamic("x")) != 1 or len(call.dynamic("weight")) != 1:
        raise GraphError(f"GroupedMatmul of one x, one weight, without {', '.join(refused)} only")
    x, weight = call["x0"], call["weight0"]
    if call.attr("transpose_weight", False):
        weight = weight.transpose(-1, -2)
    sizes = call["group_list"]
    if not int(call.attr("group_list_type", 0)):  # running totals
        sizes = torch.diff(sizes, prepend=sizes.new_zeros(1))
    quantised = x.dtype == torch.int8
    dtype = call.node.outputs[0].dtype or (torch.int32 if quantised else x.dtype)
    y = torch.zeros(x.shape[0], weight.shape[-1], dtype=torch.int32 if quantised else dtype)
    start = 0
    for matrix, size in zip(weight, sizes.tolist()):
        rows = slice(start, start + size)
        start += size
        wide = torch.int32 if quantised else matrix.dtype
        y[rows] = x[rows].to(wide) @ matrix.to(wide)
    scale = call.get("scale0")
    if scale is None or not scale.numel():
        return y.to(dtype)
    which = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    scaled = y[:start].to(torch.float32) * scale.to(torch.float32)[which]
    pertoken = call.get("per_token_scale")
    if pertoken is not None:
        scaled = scaled * pertoken[:start].unsqueeze(-1)
    return torch.cat([scaled, torch.zeros(x.shape[0] - start, y.shape[1])]).to(dtype)


KERNELS: dict[str, Kernel] = {
    "AddRmsNorm": _add_rms_norm,
    "BatchMatMul": _matmul(("adj_x1", "adj_x2")),
    "BatchMatMulV2": _matmul(("adj_x1", "adj_x2")),
    "DynamicQuant": _dynamic_quant,
    "GLU": _glu,
    "Gelu": _gelu,
    "GeluV2": _gelu_v2,
    "GroupedMatmul": _grouped_matmul,
    "HardSwish": _activation("hardswish"),
    "LayerNormV3": _layer_norm_v3,
    "LayerNormV4": _layer_norm_v4,
    "LeakyRelu": _leaky_relu,
    "LogSoftmaxV2": _log_softmax_v2,
    "MatMul": _matmul(("transpose_x1", "transpose_x2")),
    "MatMulV2": _matmul(("transpose_x1", "transpose_x2")),
    "MoeComputeExpertTokens": _moe_compute_expert_tokens,
    "MoeGatingTopKSoftmax": _moe_gating_top_k_softmax,
    "MoeInitRouting": _moe_init_routing,
    "Relu": _activation("relu"),
    "RmsNorm": _rms_norm,
    "Sigmoid": _activation("sigmoid"),
    "Softplus": _activation("softplus"),
    "SoftplusV2": _softplus_v2,
    "SoftmaxV2": _softmax_v2,
    "SwiGlu": _swi_glu,
    "Swish": _swish,
    "Tanh": _activation("tanh"),
}
