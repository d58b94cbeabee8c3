"""Programs of aten operators that TorchAIR lowers, and the tensors they take."""

import torch
from torch.nn import functional


def _tensors():
    made = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=made)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=made)

    x = normal(4, 6)
    return {
        "x": x,
        "y": normal(4, 6),
        "p": x.abs() + 0.1,
        "b": normal(4, 6) > 0,
        "h": normal(4, 6).bfloat16(),
        "n": integers(-9, 9, 4, 6),
        "c": normal(2, 3, 4),
        "d": normal(2, 4, 5),
        "i": torch.tensor([3, 0, 2]),
        "j": integers(0, 4, 4, 6),
        "w": normal(5, 6),
        "v": normal(6),
    }


TENSORS = _tensors()

# Each takes t, the tensors above by name. What is compared is dtype, shape and every bit.
EXACT = {
    "math": {
        "add": lambda t: t["x"] + t["y"],
        "add alpha": lambda t: torch.add(t["x"], t["y"], alpha=2),
        "add a number": lambda t: t["n"] + 1,
        "add bfloat16": lambda t: t["h"] + t["h"],
        "add mixed": lambda t: t["x"] + t["n"],
        "subtract": lambda t: t["x"] - t["y"],
        "subtract_from_number": lambda t: 2.5 - t["x"],
        "multiply": lambda t: t["h"] * 3,
        "divide": lambda t: t["x"] / t["y"],
        "divide integers": lambda t: t["n"] / 4,
        "divide down": lambda t: t["n"] // 3,
        "divide to zero": lambda t: torch.div(t["n"], 3, rounding_mode="trunc"),
        "remainder": lambda t: t["n"] % 4,
        "power": lambda t: t["x"] ** 2,
        "negate": lambda t: -t["x"],
        "abs": lambda t: t["x"].abs(),
        "exp": lambda t: t["x"].exp(),
        "expm1": lambda t: torch.expm1(t["x"]),
        "log": lambda t: t["p"].log(),
        "log2": lambda t: t["p"].log2(),
        "log1p": lambda t: t["p"].log1p(),
        "sqrt": lambda t: t["p"].sqrt(),
        "rsqrt": lambda t: t["p"].rsqrt(),
        "reciprocal": lambda t: t["p"].reciprocal(),
        "sine": lambda t: t["x"].sin() + t["x"].cos() + t["x"].atan(),
        "erf": lambda t: t["x"].erf(),
        "sign": lambda t: t["x"].sign(),
        "round": lambda t: (t["x"] * 8).round() + t["x"].floor() + t["x"].ceil(),
        "compare": lambda t: (t["x"] == t["y"]) | (t["x"] < t["y"]),
        "compare numbers": lambda t: (t["n"] >= 2) & (t["n"] <= 5) & (t["n"] != 3),
        "greater": lambda t: (t["x"] > t["y"]).logical_not(),
        "is infinite": lambda t: torch.isinf(t["x"] / 0),
        "is finite": lambda t: torch.isfinite(t["x"]),
        "invert": lambda t: ~t["n"],
        "clamp": lambda t: t["x"].clamp(-1, 1),
        "larger": lambda t: torch.maximum(t["x"], t["y"]) - torch.minimum(t["x"], t["y"]),
        "lerp": lambda t: torch.lerp(t["x"], t["y"], 0.3),
        "addcmul": lambda t: torch.addcmul(t["x"], t["y"], t["p"], value=0.5),
        "addcdiv": lambda t: torch.addcdiv(t["x"], t["y"], t["p"]),
        "cast": lambda t: t["x"].to(torch.int8).to(torch.int64).to(torch.bfloat16),
        "cast to bool": lambda t: t["n"].bool().float(),
    },
    "reduce": {
        "sum": lambda t: t["x"].sum(),
        "sum bfloat16": lambda t: t["h"].sum(-1),
        "sum integers": lambda t: t["n"].int().sum(0),
        "sum in float32": lambda t: t["h"].sum(1, dtype=torch.float32),
        "mean": lambda t: t["x"].mean(-1, keepdim=True),
        "max": lambda t: t["x"].max(),
        "max of rows": lambda t: t["x"].max(1).values,
        "place of max": lambda t: t["x"].max(1).indices,
        "argmax": lambda t: t["x"].argmax(-1),
        "argmin": lambda t: t["x"].argmin(),
        "any": lambda t: t["b"].any(),
        "all": lambda t: t["b"].all(),
        "norm": lambda t: t["x"].norm(dim=-1, keepdim=True),
        "logsumexp": lambda t: t["x"].logsumexp(-1),
        "cumsum": lambda t: t["n"].cumsum(0),
        "cumsum of floats": lambda t: t["x"].cumsum(-1),
    },
    "shape": {
        "view": lambda t: t["x"].view(2, 12) + 1,
        "reshape": lambda t: t["x"].t().reshape(-1) * 2,
        "permute": lambda t: t["c"].permute(2, 0, 1) + 1,
        "transpose": lambda t: t["c"].transpose(0, 2).contiguous(),
        "unsqueeze": lambda t: t["x"].unsqueeze(1) + 0,
        "squeeze": lambda t: (t["x"][:1] * 2).squeeze(),
        "expand": lambda t: t["x"].unsqueeze(0).expand(3, 4, 6) + 1,
        "repeat": lambda t: t["x"].repeat(2, 3),
        "repeat_interleave": lambda t: t["x"].repeat_interleave(3, dim=0),
        "flip": lambda t: t["x"].flip(0),
        "cat": lambda t: torch.cat([t["x"], t["y"], t["x"]], -1),
        "stack": lambda t: torch.stack([t["x"], t["y"]], 1),
        "split": lambda t: t["x"].split([1, 2, 3], 1)[1] + 1,
        "chunk": lambda t: t["x"].chunk(2, -1)[1] * 2,
        "unbind": lambda t: t["x"].unbind(0)[2] * 2,
        "slice": lambda t: t["x"][1:3] + 1,
        "slice with a step": lambda t: t["x"][:, ::2] * 1.0,
        "slice from the end": lambda t: t["x"][:-1, -2:] + 1,
        "select": lambda t: t["c"][..., -1] * 2,
        "pad": lambda t: functional.pad(t["x"], (1, 2, 0, 1), value=3.0),
        "zeros": lambda t: torch.zeros(3, 4) + t["x"][:3, :4],
        "ones_like": lambda t: torch.ones_like(t["x"]) + torch.zeros_like(t["y"]),
        "full": lambda t: torch.full((4, 6), 2.5) + t["x"],
        "arange": lambda t: torch.arange(6) + t["x"],
        "linspace": lambda t: torch.linspace(0, 1, 6) + t["x"],
        "the same bits": lambda t: (t["x"] + 1).view(torch.int32),
        "a constant": lambda t: t["x"] + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "triangle": lambda t: t["x"].tril() + t["x"].triu(1),
        "an input": lambda t: t["x"].view(-1),
        "transposed output": lambda t: (t["x"] + 1).t(),
        "a copy": lambda t: t["x"].clone(),
    },
    "index": {
        "index_select": lambda t: t["x"].index_select(0, t["i"]),
        "rows": lambda t: t["x"][t["i"]],
        "pairs": lambda t: t["x"][t["i"], t["i"]],
        "columns": lambda t: t["x"][:, t["i"]],
        "gather": lambda t: t["x"].gather(0, t["j"]),
        "embedding": lambda t: functional.embedding(t["i"], t["x"]),
        "scatter": lambda t: t["x"].scatter(0, t["j"][:1], t["y"]),
        "scatter_add": lambda t: t["x"].scatter_add(0, t["j"], t["y"]),
        "index_add": lambda t: t["x"].index_add(0, t["i"], t["y"][:3]),
        "histogram": lambda t: torch.zeros(5, dtype=torch.int64).scatter_add(
            0, t["i"], torch.ones_like(t["i"])
        ),
        "bincount": lambda t: (t["i"][:, None] == torch.arange(5)).sum(0),
        "where": lambda t: torch.where(t["b"], t["x"], t["y"]),
        "masked_fill": lambda t: t["x"].masked_fill(t["b"], float("-inf")),
        "sort": lambda t: t["x"].sort().values,
        "place in order": lambda t: t["x"].sort(0, descending=True).indices,
        "argsort": lambda t: t["x"].view(-1).argsort(),
        "topk": lambda t: t["x"].topk(2).values,
        "place of topk": lambda t: t["x"].topk(3, dim=0, largest=False).indices,
        "searchsorted": lambda t: torch.searchsorted(t["v"].sort().values, t["x"].view(-1)),
    },
    "nn": {
        "softmax": lambda t: t["x"].softmax(-1),
        "softmax in float32": lambda t: t["h"].softmax(-1, dtype=torch.float32),
        "log_softmax": lambda t: t["x"].log_softmax(-1),
        "matmul": lambda t: t["x"] @ t["w"].t(),
        "bmm": lambda t: torch.bmm(t["c"], t["d"]),
        "linear": lambda t: functional.linear(t["x"], t["w"]),
        "linear bfloat16": lambda t: functional.linear(t["h"], t["w"].bfloat16()),
        "layer_norm": lambda t: functional.layer_norm(t["x"], (6,), t["v"], t["v"]),
        "silu": lambda t: functional.silu(t["h"]),
        "gelu of tanh": lambda t: functional.gelu(t["x"], approximate="tanh"),
        "relu": lambda t: functional.relu(t["x"]),
        "leaky_relu": lambda t: functional.leaky_relu(t["x"]),
        "hardswish": lambda t: functional.hardswish(t["x"]),
        "glu": lambda t: functional.glu(t["x"]),
        "tanh": lambda t: t["x"].tanh() + t["x"].sigmoid(),
        "rms norm": lambda t: (
            t["v"] * t["x"] * torch.rsqrt(t["x"].pow(2).mean(-1, keepdim=True) + 1e-6)
        ),
    },
}
# GE's Gelu is the tanh form, whichever aten asked for; addmm is a product and then a sum there.
CLOSE = {
    "gelu": (lambda t: functional.gelu(t["x"]), 1e-3),
    "addmm": (lambda t: torch.addmm(t["w"][0, :5], t["x"], t["w"].t()), 1e-5),
}

# What an older TorchAIR lacks a converter for, or lowers to an integer quotient; it is asked.
LATER = {"divide integers", "expm1", "searchsorted", "the same bits"}
