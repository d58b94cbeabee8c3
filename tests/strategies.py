"""Strategies of generated calls, legal and illegal, for every test that draws them."""

import torch
from cases import call
from hypothesis import settings
from hypothesis import strategies as st
from oracle import oracle

LATER = ("offset", "x_dtype", "w_dtype", "scale_dtype", "pertoken_scale_dtype")
FLOATS = ("scale", "bias", "pertoken_scale", "logit", "shared_input")
OF_ROWS = ("x", "pertoken_scale", "logit", "row_index")
GARBAGE = {torch.int64: (2**40, -5, -(2**62)), torch.int32: (2**31 - 1, -5, -(2**31))}
BIASES = (None, torch.float32, torch.bfloat16)
SUBNORMAL, LARGE = 1e-40, 1e30
# Values that float arithmetic treats in their own way.
HOSTILE = (0.0, -0.0, SUBNORMAL, LARGE, -3e38, float("inf"), -float("inf"), float("nan"))


def share(of):
    """As settings: a part of the profile's examples, for what costs more than an eager call."""
    return settings(max_examples=max(1, settings().max_examples // of))


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def on_tensors(function, case):
    """The call with each tensor replaced."""
    return {name: function(value) if is_tensor(value) else value for name, value in case.items()}


def expected(case):
    """The oracle's result; arguments of later generations are None in a legal call."""
    return oracle(**{name: value for name, value in case.items() if name not in LATER})


def for_symbols(case):
    """The call for dynamic shapes, where torch itself makes a symbol of a float and -0.0 is 0.0."""
    if case.get("shared_input_weight") == 0:
        return {**case, "shared_input_weight": 0.0}
    return case


def restride(draw, name, tensor):
    """The same numbers, or one row of them repeated, behind other strides or another offset."""
    form = draw(st.sampled_from(["plain", "transposed", "spread", "shifted", "sliced", "repeated"]))
    if form == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if form == "spread":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if form == "shifted":
        flat = torch.cat([tensor.new_zeros(3), tensor.reshape(-1)])
        return flat[3:].view(tensor.shape)
    if form == "sliced" and tensor.dim() > 1:  # rows and columns of something larger
        wider = torch.cat([tensor, tensor], -1)
        return torch.cat([wider, wider])[: tensor.shape[0], ..., : tensor.shape[-1]]
    if form == "repeated" and name not in ("group_list", "row_index"):
        return tensor[:1].expand(tensor.shape)
    return tensor


def make_hostile(draw, case):
    """Put values that float arithmetic treats in its own way among those that count."""
    for name in FLOATS:
        if case.get(name) is not None and draw(st.booleans()):
            flat = case[name].reshape(-1)
            places = draw(st.lists(st.integers(0, flat.numel() - 1), max_size=3))
            for place in places:
                flat[place] = draw(st.sampled_from(HOSTILE))


def make_tail_garbage(draw, case, tail):
    """Fill the rows past the last group with what no row may hold."""
    m = case["x"].shape[0]
    index = case["row_index"]
    index[m - tail :] = draw(st.sampled_from(GARBAGE[index.dtype]))
    for name in ("pertoken_scale", "logit"):
        if case.get(name) is not None:
            case[name][m - tail :] = draw(st.sampled_from([float("nan"), float("inf"), LARGE]))


def leave_out(draw, case):
    """Leave optional arguments at their defaults, in both spellings: absent, and None."""
    names = ("dtype", "tuning_config", "shared_input_weight", "shared_input_offset", *LATER)
    for name in draw(st.lists(st.sampled_from(names), unique=True)):
        case.setdefault(name, None)
    if draw(st.booleans()):
        case["dtype"] = torch.float32
    if draw(st.integers(0, 3)) == 0:
        case["tuning_config"] = draw(st.lists(st.integers(0, 9), max_size=3))
    for name in ("bias", "pertoken_scale", "logit", "shared_input"):
        if case.get(name) is None and draw(st.booleans()):
            case.pop(name, None)


@st.composite
def legal(
    draw, hostile=True, bias=(None, torch.float32, torch.bfloat16), nz=None, rows_given=False
):
    """A legal call, with everything that the contract lets vary.

    Args:
        draw: hypothesis'.
        hostile: whether infinities, NaN, subnormal and huge numbers may be among those that count.
        bias: the dtypes it may have, None for no bias.
        nz: whether w is 5-D; None for either.
        rows_given: whether output_bs has to be more than 0.
    """
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    tail = draw(st.integers(0 if sum(counts) else 1, 5))
    m = sum(counts) + tail
    nz = draw(st.booleans()) if nz is None else nz
    k = draw(st.integers(1, 70))
    n = 32 * draw(st.integers(1, 3)) if nz else draw(st.integers(1, 70))
    rows = st.integers(1, m)
    output_bs = draw(rows if rows_given else st.one_of(st.sampled_from([0, None]), rows))
    rows = output_bs or m
    shared_rows = draw(st.integers(0, rows))
    case = call(
        m=m,
        k=k,
        n=n,
        counts=counts,
        output_bs=output_bs,
        shared_rows=shared_rows,
        seed=draw(st.integers(0, 2**31)),
        bias=draw(st.sampled_from(bias)),
        index_dtype=draw(st.sampled_from([torch.int64, torch.int32])),
    )
    case["scale"] = case["scale"].to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    if shared_rows:
        offsets = st.integers(0, rows - shared_rows)
        case["shared_input_offset"] = draw(offsets) or draw(st.sampled_from([0, None]))
        weights = st.floats(-4, 4, width=32).map(lambda weight: weight if abs(weight) > 1e-6 else 0)
        weights = st.one_of(weights, st.sampled_from(HOSTILE)) if hostile else weights
        case["shared_input_weight"] = draw(st.one_of(st.none(), weights.map(float)))
    if nz:
        generator = torch.Generator().manual_seed(k)
        shape = (len(counts), n // 32, -(-k // 16), 16, 32)
        case["w"] = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    group_list_type = draw(st.sampled_from([0, 1, None, "absent"]))
    if group_list_type != "absent":
        case["group_list_type"] = group_list_type
    if group_list_type == 0:
        case["group_list"] = case["group_list"].cumsum(0)
    if hostile:
        make_hostile(draw, case)
    if tail and draw(st.integers(0, 3)):
        make_tail_garbage(draw, case, tail)
    if not shared_rows and draw(st.booleans()):
        case["logit"] = None
    if draw(st.booleans()):
        case["pertoken_scale"] = draw(st.sampled_from([None, case["pertoken_scale"].unsqueeze(1)]))
    leave_out(draw, case)
    return {
        name: restride(draw, name, value) if is_tensor(value) else value
        for name, value in case.items()
    }
