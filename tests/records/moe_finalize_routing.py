"""npu_moe_finalize_routing, token by token in float32."""

import torch
from errors import Bad
from operators import Tested

int32 = torch.int32


def call(tokens=5, k=2, h=6, experts=3, mode=0, dtype=torch.float32, leave=(), **kwargs):
    generator = torch.Generator().manual_seed(13)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    slots = tokens * k
    capacity = slots // experts + 1
    drops = mode in (1, 3)
    place = torch.randperm(experts * capacity if drops else slots, generator=generator)[:slots]
    place = place.to(int32)
    if drops:
        place[::3] = -1
    made = {
        "expanded_permuted_rows": randn(experts, capacity, h) if drops else randn(slots, h),
        "skip1": randn(tokens, h),
        "skip2": randn(tokens, h),
        "bias": randn(experts, h),
        "scales": randn(tokens, k),
        "expanded_src_to_dst_row": place,
        "export_for_source_row": torch.randint(
            0, experts, (tokens, k), generator=generator, dtype=int32
        ),
        "drop_pad_mode": mode,
        "k": k,
    }
    made.update(dict.fromkeys(leave))
    return {**made, **kwargs}


def oracle(
    expanded_permuted_rows,
    skip1,
    skip2,
    bias,
    scales,
    expanded_src_to_dst_row,
    export_for_source_row,
    drop_pad_mode=0,
    k=1,
):
    mode = drop_pad_mode or 0
    rows = expanded_permuted_rows.reshape(-1, expanded_permuted_rows.shape[-1]).float()
    k = (k or 1) if scales is None else scales.shape[1]
    tokens = expanded_src_to_dst_row.shape[0] // k if scales is None else scales.shape[0]
    result = []
    for i in range(tokens):
        total = torch.zeros(rows.shape[1])
        for skip in (skip1, skip2):
            if skip is not None:
                total = total + skip[i].float()
        for j in range(k):
            place = int(expanded_src_to_dst_row[j * tokens + i if mode < 2 else i * k + j])
            row = torch.zeros(rows.shape[1]) if place < 0 else rows[place]
            if bias is not None and place >= 0:
                row = row + bias[int(export_for_source_row[i, j])].float()
            if scales is not None:
                row = row * scales[i, j].float()
            total = total + row
        result.append(total)
    result = torch.stack(result) if result else rows[:0]
    return result.to(expanded_permuted_rows.dtype)


def node(case):
    """Upstream's choice: the older type needs nearly everything."""
    needed = ("skip1", "bias", "scales", "export_for_source_row")
    whole = all(case.get(name) is not None for name in needed)
    return (
        "MoeFinalizeRouting" if whole and not case.get("drop_pad_mode") else "MoeFinalizeRoutingV2"
    )


def attributes(case):
    return (
        {}
        if node(case) == "MoeFinalizeRouting"
        else {
            "drop_pad_mode": case.get("drop_pad_mode") or 0,
            "k": case.get("k") or 1,
        }
    )


EVERYTHING = ("skip1", "skip2", "bias", "scales", "export_for_source_row")

TESTED = [
    Tested(
        name="npu_moe_finalize_routing",
        samples={
            "float32": call,
            "bfloat16": lambda: call(dtype=torch.bfloat16),
            "float16": lambda: call(dtype=torch.float16),
            "no_skip2": lambda: call(leave=("skip2",)),
            "no_skips": lambda: call(leave=("skip1", "skip2")),
            "no_bias": lambda: call(leave=("bias",)),
            "no_bias_no_experts": lambda: call(leave=("bias", "export_for_source_row")),
            "no_scales": lambda: call(leave=("scales",)),
            "rows_alone": lambda: call(leave=EVERYTHING),
            "capacity": lambda: call(mode=1),
            "capacity_no_bias": lambda: call(mode=1, leave=("bias",)),
            "by_rows": lambda: call(mode=2),
            "by_rows_no_scales": lambda: call(mode=2, leave=("scales",)),
            "by_rows_capacity": lambda: call(mode=3),
            "one_token": lambda: call(tokens=1, k=3),
            "one_slot": lambda: call(k=1, leave=("skip2",)),
            "large": lambda: call(tokens=60, k=8, h=300, experts=16, dtype=torch.bfloat16),
        },
        oracle=oracle,
        node=node,
        attributes=attributes,
        errors={
            "dtype": Bad(
                {"expanded_permuted_rows": torch.zeros(10, 6, dtype=torch.int8)},
                TypeError,
                "expanded_permuted_rows must be float16 or bfloat16 or float32, got int8",
                call,
            ),
            "rank": Bad(
                {"expanded_permuted_rows": torch.zeros(3, 4, 6)},
                ValueError,
                "expanded_permuted_rows must be 2-D (tokens * k, h), got shape (3, 4, 6)",
                call,
            ),
            "rank_of_a_capacity": Bad(
                {"drop_pad_mode": 1},
                ValueError,
                "expanded_permuted_rows must be 3-D (experts, capacity, h), got shape (10, 6)",
                call,
            ),
            "mode": Bad(
                {"drop_pad_mode": 4}, ValueError, "drop_pad_mode must be 0 (slots by columns", call
            ),
            "rows": Bad(
                {"expanded_permuted_rows": torch.zeros(9, 6)},
                ValueError,
                "expanded_permuted_rows must be (tokens * k, h) = (10, 6), got shape (9, 6)",
                call,
            ),
            "skip2_alone": Bad(
                {"skip1": None},
                ValueError,
                "skip1 is required with skip2: expected both, skip1 alone or neither, got",
                call,
            ),
            "skip_shape": Bad(
                {"skip1": torch.zeros(4, 6)},
                ValueError,
                "skip1 must be (tokens, h) = (5, 6), got shape (4, 6)",
                call,
            ),
            "skip_dtype": Bad(
                {"skip2": torch.zeros(5, 6).bfloat16()},
                TypeError,
                "skip2 must be float32, got bfloat16",
                call,
            ),
            "bias_without_experts": Bad(
                {"export_for_source_row": None},
                ValueError,
                "export_for_source_row is required with bias, got bias of shape (3, 6) and",
                call,
            ),
            "bias_shape": Bad(
                {"bias": torch.zeros(3, 5)},
                ValueError,
                "bias must be (experts, h) = (3, 6), got shape (3, 5)",
                call,
            ),
            "scales_rank": Bad(
                {"scales": torch.zeros(10)},
                ValueError,
                "scales must be 2-D (tokens, k), got shape (10,)",
                call,
            ),
            "place_dtype": Bad(
                {"expanded_src_to_dst_row": torch.zeros(10, dtype=torch.int64)},
                TypeError,
                "expanded_src_to_dst_row must be int32, got int64",
                call,
            ),
            "place_shape": Bad(
                {"expanded_src_to_dst_row": torch.zeros(9, dtype=int32)},
                ValueError,
                "expanded_src_to_dst_row must be (tokens * k,) = (5 * 2,), got shape (9,)",
                call,
            ),
            "experts_shape": Bad(
                {"export_for_source_row": torch.zeros(5, 3, dtype=int32)},
                ValueError,
                "export_for_source_row must be (tokens, k) = (5, 2), got shape (5, 3)",
                call,
            ),
        },
        value_errors={
            "place_large": Bad(
                {"expanded_src_to_dst_row": torch.full((10,), 10, dtype=int32)},
                IndexError,
                "expanded_src_to_dst_row must lie in [0, 10), got 10",
                call,
            ),
            "place_dropped": Bad(
                {"expanded_src_to_dst_row": torch.full((10,), -1, dtype=int32)},
                IndexError,
                "expanded_src_to_dst_row must lie in [0, 10), got -1",
                call,
            ),
            "expert_large": Bad(
                {"export_for_source_row": torch.full((5, 2), 3, dtype=int32)},
                IndexError,
                "export_for_source_row must lie in [0, 3), got 3",
                call,
            ),
        },
    )
]
