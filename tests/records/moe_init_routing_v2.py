"""npu_moe_init_routing_v2, slot by slot, numbers in numpy."""

import numpy as np
import torch
from errors import Bad
from operators import Tested

int32, int64 = torch.int32, torch.int64


def call(tokens=6, h=8, k=2, experts=5, dtype=torch.bfloat16, finished=False, **kwargs):
    generator = torch.Generator().manual_seed(13)
    expert_idx = torch.randint(0, experts, (tokens, k), generator=generator, dtype=int32)
    if finished:
        expert_idx[1] = experts
    x = torch.randn(tokens, h, generator=generator) * 3
    made = {
        "x": (x * 10).to(dtype) if dtype == torch.int8 else x.to(dtype),
        "expert_idx": expert_idx,
        "expert_num": experts,
        "expert_tokens_num_flag": True,
        "expert_tokens_num_type": 1,
    }
    return {**made, **kwargs}


def scaled(shape, **kwargs):
    """With a scale; of the last token's sign, so that rows can be told apart."""
    made = call(**kwargs)
    numbers = torch.linspace(0.5, 2, torch.Size(shape).numel()).reshape(shape)
    return {**made, "scale": numbers}


def per_token(tokens=6, **kwargs):
    """What vllm-ascend passes: the scales of int8 rows, which follow them."""
    return scaled(
        (tokens,), tokens=tokens, dtype=torch.int8, row_idx_type=1, active_expert_range=[0, 3],
        **kwargs,
    )  # fmt: skip


def static(**kwargs):
    return {**scaled((1,), quant_mode=0, **kwargs), "offset": torch.tensor([0.75])}


def padded(**kwargs):
    return call(drop_pad_mode=1, expert_capacity=2, **kwargs)


def with_zero_row():
    made = call(quant_mode=1)
    made["x"][2] = 0
    return made


def halves():
    """Numbers that lie halfway between two of int8, after the scale."""
    made = static()
    made["x"] = (torch.arange(-24, 24).reshape(6, 8) / 2).bfloat16()
    made["scale"], made["offset"] = torch.tensor([1.0]), torch.tensor([0.0])
    return made


def saturating():
    made = static()
    return {**made, "x": made["x"] * 100}


def as_int8(row, scale, offset):
    half = (row.astype(np.float16) * scale.astype(np.float16)).astype(np.float16)
    half = (half + offset.astype(np.float16)).astype(np.float16)
    return np.clip(np.rint(half), -128, 127).astype(np.int8)


def by_row(row):
    scale = np.float32(np.abs(row).max()) / np.float32(127)
    return (np.rint(row / scale).astype(np.int8) if scale else np.zeros(len(row), np.int8)), scale


def oracle(
    x,
    expert_idx,
    scale=None,
    offset=None,
    active_num=-1,
    expert_capacity=-1,
    expert_num=-1,
    drop_pad_mode=0,
    expert_tokens_num_type=0,
    expert_tokens_num_flag=False,
    quant_mode=-1,
    active_expert_range=(),
    row_idx_type=0,
    x_dtype=None,
):
    del x_dtype
    tokens, k = expert_idx.shape
    first, end = active_expert_range or (0, expert_num)
    flat = expert_idx.reshape(-1).tolist()
    of_expert = {e: [s for s, each in enumerate(flat) if each == e] for e in range(first, end)}
    counts = [len(of_expert[e]) for e in range(first, end)]
    if drop_pad_mode:
        places = [
            slots[i] if i < len(slots) else None
            for slots in of_expert.values()
            for i in range(expert_capacity)
        ]
    else:
        places = [slot for slots in of_expert.values() for slot in slots]
    row_of = torch.full((tokens * k,), -1, dtype=int32)
    for place, slot in enumerate(places):
        if slot is not None:
            row_of[slot] = place
    if row_idx_type:
        row_of = torch.tensor(places + [0] * (tokens * k - len(places)), dtype=int32)
    height = len(places) if drop_pad_mode else tokens * k
    if active_num > 0 and not drop_pad_mode:
        height = min(active_num, height)
    dtype = x.dtype if quant_mode == -1 else torch.int8
    rows, scales = torch.zeros(height, x.shape[1], dtype=dtype), torch.zeros(height)
    for place, slot in enumerate(places[:height]):
        if slot is None:
            continue
        row = x[slot // k]
        if quant_mode == -1:
            rows[place] = row
            scales[place] = 0 if scale is None else scale[slot // k]
        elif quant_mode == 0:
            rows[place] = torch.from_numpy(as_int8(row.float().numpy(), scale[0].numpy(),
                                                   offset[0].numpy()))  # fmt: skip
        else:
            wide = row.float().numpy()
            if scale is not None:
                wide = wide * scale[0 if len(scale) == 1 else flat[slot] - first].numpy()
            y, one = by_row(wide)
            rows[place], scales[place] = torch.from_numpy(y), float(one)
    if expert_tokens_num_type == 0:
        tokens_of = [sum(counts[: i + 1]) for i in range(len(counts))]
    elif expert_tokens_num_type == 1:
        tokens_of = counts
    else:
        tokens_of = [[first + i, count] for i, count in enumerate(counts) if count]
        tokens_of += [[0, 0]] * (expert_num - len(tokens_of))
    counted = torch.tensor(tokens_of, dtype=int64)
    if drop_pad_mode:
        rows = rows.reshape(expert_num, expert_capacity, -1)
    return rows, row_of, counted if expert_tokens_num_flag else torch.zeros_like(counted), scales


def undefined(case, values):
    """Of rows that no slot of an active expert went to, nothing is."""
    rows, row_of, counted, scales = values
    if case.get("drop_pad_mode"):
        return values
    first, end = case.get("active_expert_range") or (0, case["expert_num"])
    flat = case["expert_idx"].reshape(-1)
    there = int(((flat >= first) & (flat < end)).sum())
    assert rows.isfinite().all() if rows.is_floating_point() else True
    if case.get("row_idx_type"):
        # What lies past them is used as an index all the same.
        assert bool(((row_of >= 0) & (row_of < flat.numel())).all())
        row_of = row_of[:there]
    return rows[:there], row_of, counted, scales[:there]


TESTED = [
    Tested(
        name="npu_moe_init_routing_v2",
        samples={
            "per_token": per_token,
            "bfloat16": call,
            "float16": lambda: call(dtype=torch.float16),
            "float32": lambda: call(dtype=torch.float32, row_idx_type=1),
            "int8": lambda: call(dtype=torch.int8),
            "range": lambda: call(active_expert_range=[1, 4]),
            "range_scattered": lambda: call(active_expert_range=[1, 4], row_idx_type=1),
            "finished": lambda: call(finished=True, row_idx_type=1),
            "one_expert_active": lambda: call(active_expert_range=[4, 5], row_idx_type=1),
            "active_num": lambda: per_token(active_num=3),
            "active_num_zero": lambda: call(active_num=0),
            "active_num_large": lambda: call(active_num=99),
            "totals": lambda: call(expert_tokens_num_type=0, active_expert_range=[1, 4]),
            "key_value": lambda: call(
                experts=9, expert_tokens_num_type=2, active_expert_range=[1, 6]
            ),
            "key_value_full": lambda: call(tokens=40, expert_tokens_num_type=2),
            "not_counted": lambda: call(expert_tokens_num_flag=False),
            "static": static,
            "static_float16": lambda: static(dtype=torch.float16),
            "static_halves": halves,
            "static_saturating": saturating,
            "dynamic": lambda: call(quant_mode=1),
            "dynamic_zero_row": with_zero_row,
            "dynamic_one_scale": lambda: scaled((1, 8), quant_mode=1, dtype=torch.float32),
            "dynamic_scales": lambda: scaled((3, 8), quant_mode=1, active_expert_range=[1, 4]),
            "drop_pad": padded,
            "drop_pad_float32": lambda: padded(dtype=torch.float32, k=3, finished=True),
            "drop_pad_scale": lambda: {**padded(), "scale": torch.linspace(1, 2, 6)},
            "drop_pad_static": lambda: {
                **static(),
                **{k: padded()[k] for k in ("drop_pad_mode", "expert_capacity")},
            },
            "drop_pad_dynamic": lambda: padded(quant_mode=1),
            "drop_pad_dynamic_scales": lambda: {
                **padded(quant_mode=1),
                "scale": torch.linspace(0.5, 2, 40).reshape(5, 8),
            },
            "one_token": lambda: call(tokens=1),
            "no_tokens": lambda: call(tokens=0),
            "no_tokens_dynamic": lambda: call(tokens=0, quant_mode=1, row_idx_type=1),
            "large": lambda: call(tokens=300, h=64, k=8, experts=40, active_expert_range=[8, 24]),
        },
        decomposed=False,
        oracle=oracle,
        undefined=undefined,
        node="MoeInitRoutingV3",
        attributes=lambda case: {
            name: tuple(case[name]) if name == "active_expert_range" else case[name]
            for name in ("active_num", "quant_mode", "row_idx_type", "active_expert_range")
            if name in case
        },
        errors={
            "x_dtype": Bad(
                {"x": torch.zeros(6, 8, dtype=int32)},
                TypeError,
                "x must be float16 or bfloat16 or float32 or int8, got int32",
                call,
            ),
            "int8_quantised": Bad(
                {"x": torch.zeros(6, 8, dtype=torch.int8), "quant_mode": 1},
                TypeError,
                "x must be float16 or bfloat16 or float32, got int8",
                call,
            ),
            "x_rank": Bad(
                {"x": torch.zeros(6)}, ValueError, "x must be 2-D (tokens, h), got shape (6,)", call
            ),
            "expert_idx_dtype": Bad(
                {"expert_idx": torch.zeros(6, 2, dtype=int64)},
                TypeError,
                "expert_idx must be int32, got int64",
                call,
            ),
            "expert_idx_shape": Bad(
                {"expert_idx": torch.zeros(5, 2, dtype=int32)},
                ValueError,
                "expert_idx must be (tokens, k) = (6, 2), got shape (5, 2)",
                call,
            ),
            "no_choice": Bad(
                {"expert_idx": torch.zeros(6, 0, dtype=int32)},
                ValueError,
                "expert_idx must have k >= 1, got shape (6, 0)",
                call,
            ),
            "expert_num": Bad(
                {"expert_num": -1}, ValueError, "expert_num must be >= 1, got -1", call
            ),
            "range": Bad(
                {"active_expert_range": [3, 9]},
                ValueError,
                "active_expert_range must be empty, or [first, end) with 0 <= first < end <= "
                "expert_num = 5, got [3, 9]",
                call,
            ),
            "range_empty": Bad(
                {"active_expert_range": [3, 3]},
                ValueError,
                "active_expert_range must be empty, or [first, end) with 0 <= first < end <= "
                "expert_num = 5, got [3, 3]",
                call,
            ),
            "active_num": Bad(
                {"active_num": -2}, ValueError, "active_num must be >= -1, got -2", call
            ),
            "drop_pad_mode": Bad(
                {"drop_pad_mode": 2},
                ValueError,
                "drop_pad_mode must be 0 (dropless) or 1 (drop and pad), got 2",
                call,
            ),
            "tokens_type": Bad(
                {"expert_tokens_num_type": 3},
                ValueError,
                "expert_tokens_num_type must be 0 (totals), 1 (counts) or 2 (key and value), got 3",
                call,
            ),
            "row_idx_type": Bad(
                {"row_idx_type": 2},
                ValueError,
                "row_idx_type must be 0 (gather) or 1 (scatter), got 2",
                call,
            ),
            "scale_dtype": Bad(
                {"scale": torch.zeros(6).bfloat16()},
                TypeError,
                "scale must be float32, got bfloat16",
                call,
            ),
            "scale_shape": Bad(
                {"scale": torch.zeros(5)},
                ValueError,
                "scale must be (tokens,) = (6,), got shape (5,)",
                call,
            ),
            "scales_shape": Bad(
                {"scale": torch.zeros(4, 8), "quant_mode": 1},
                ValueError,
                "scale must be (active experts, h) = (5, 8), got shape (4, 8)",
                call,
            ),
            "one_scale_shape": Bad(
                {"scale": torch.zeros(1, 7), "quant_mode": 1},
                ValueError,
                "scale must be (1, h) = (1, 8), got shape (1, 7)",
                call,
            ),
            "static_scale": Bad(
                {"scale": None},
                ValueError,
                "scale is required with quant_mode 0, float32 (1,), got None",
                static,
            ),
            "static_offset": Bad(
                {"offset": torch.zeros(2)},
                ValueError,
                "offset must be (1,) = (1,), got shape (2,)",
                static,
            ),
            "offset": Bad(
                {"offset": torch.zeros(1)},
                ValueError,
                "offset must be None with quant_mode -1, got a tensor of shape (1,)",
                call,
            ),
            "capacity": Bad(
                {"expert_capacity": 0},
                ValueError,
                "expert_capacity must lie in [1, tokens] = [1, 6], got 0",
                padded,
            ),
            "capacity_large": Bad(
                {"expert_capacity": 7},
                ValueError,
                "expert_capacity must lie in [1, tokens] = [1, 6], got 7",
                padded,
            ),
            "drop_pad_scattered": Bad(
                {"row_idx_type": 1},
                ValueError,
                "row_idx_type must be 0 with drop_pad_mode 1, got 1",
                padded,
            ),
            "drop_pad_totals": Bad(
                {"expert_tokens_num_type": 0},
                ValueError,
                "expert_tokens_num_type must be 1 with drop_pad_mode 1, got 0",
                padded,
            ),
            "drop_pad_range": Bad(
                {"active_expert_range": [0, 4]},
                ValueError,
                "active_expert_range must be empty or all experts with drop_pad_mode 1, "
                "[0, 5], got [0, 4]",
                padded,
            ),
            "mode": Bad(
                {"quant_mode": 18},
                NotImplementedError,
                "quant_mode must be -1 (none), 0 (static int8) or 1 (dynamic int8) on CPU, got 18",
                call,
            ),
        },
        value_errors={
            "expert_idx_large": Bad(
                {"expert_idx": torch.full((6, 2), 6, dtype=int32)},
                IndexError,
                "expert_idx must lie in [0, expert_num] = [0, 5], got expert_idx[0] = 6",
                call,
            ),
            "expert_idx_negative": Bad(
                {"expert_idx": torch.tensor([[0, -1]] * 6, dtype=int32)},
                IndexError,
                "expert_idx must lie in [0, expert_num] = [0, 5], got expert_idx[1] = -1",
                call,
            ),
        },
    ),
]
