"""npu_moe_init_routing_quant, by the oracle of the v2, slot by slot."""

import torch
from errors import Bad
from operators import Tested
from records import moe_init_routing_v2 as v2


def call(quant_mode=1, **kwargs):
    made = v2.call(**kwargs)
    for name in ("expert_tokens_num_flag", "expert_tokens_num_type"):
        del made[name]
    return {**made, "quant_mode": quant_mode}


def static(**kwargs):
    given = {"scale": torch.tensor([1.5]), "offset": torch.tensor([0.75])}
    return {**call(quant_mode=0, **kwargs), **given}


def padded(**kwargs):
    return call(drop_pad_mode=1, expert_capacity=2, **kwargs)


def oracle(
    x,
    expert_idx,
    scale=None,
    offset=None,
    active_num=1024,
    expert_capacity=0,
    expert_num=256,
    drop_pad_mode=0,
    expert_tokens_num_mode=0,
    expert_tokens_before_capacity_flag=False,
    quant_mode=1,
):
    rows, row_of, counts, scales = v2.oracle(
        x,
        expert_idx,
        scale=scale,
        offset=offset,
        active_num=active_num,
        expert_capacity=expert_capacity,
        expert_num=expert_num,
        drop_pad_mode=drop_pad_mode,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        quant_mode=quant_mode,
    )
    counts = counts.tolist()
    totals = [sum(counts[: i + 1]) for i in range(len(counts))]
    tokens = [[], totals, counts][0 if drop_pad_mode else expert_tokens_num_mode]
    before = counts if drop_pad_mode and expert_tokens_before_capacity_flag else []
    return (
        rows,
        row_of,
        torch.tensor(tokens, dtype=torch.int32),
        torch.tensor(before, dtype=torch.int32),
        scales if quant_mode == 1 else torch.empty(0),
    )


def undefined(case, values):
    """Of rows that no slot went to, those of finished tokens, nothing is."""
    if case.get("drop_pad_mode"):
        return values
    there = int((case["expert_idx"] < case["expert_num"]).sum())
    rows, row_of, tokens, before, scales = values
    return rows[:there], row_of, tokens, before, scales[:there]


TESTED = [
    Tested(
        name="npu_moe_init_routing_quant",
        samples={
            "dynamic": call,
            "float16": lambda: call(dtype=torch.float16, expert_tokens_num_mode=1),
            "float32": lambda: call(dtype=torch.float32, expert_tokens_num_mode=2),
            "finished": lambda: call(finished=True, expert_tokens_num_mode=2),
            "active_num": lambda: call(active_num=5),
            "all_active": lambda: call(active_num=0),
            "scales": lambda: {**call(), "scale": torch.linspace(0.5, 2, 40).reshape(5, 8)},
            "one_scale": lambda: {**call(), "scale": torch.linspace(0.5, 2, 8).reshape(1, 8)},
            "static": static,
            "static_counted": lambda: static(expert_tokens_num_mode=2, dtype=torch.float32),
            "drop_pad": padded,
            "drop_pad_before": lambda: padded(expert_tokens_before_capacity_flag=True),
            "drop_pad_not_counted": lambda: padded(expert_tokens_num_mode=2),
            "before_of_none_dropped": lambda: call(expert_tokens_before_capacity_flag=True),
            "one_token": lambda: call(tokens=1),
            "no_tokens": lambda: call(tokens=0, expert_tokens_num_mode=1),
            "large": lambda: call(tokens=200, h=64, k=8, experts=40, active_num=0),
        },
        decomposed=False,
        oracle=oracle,
        undefined=undefined,
        node=None,  # TorchAIR has no converter of it
        errors={
            "dtype": Bad(
                {"x": torch.zeros(6, 8, dtype=torch.int8)},
                TypeError,
                "x must be float16 or bfloat16 or float32, got int8",
                call,
            ),
            "quant_mode": Bad(
                {"quant_mode": -1},
                ValueError,
                "quant_mode must be 0 (static int8) or 1 (dynamic int8), got -1",
                call,
            ),
            "tokens_mode": Bad(
                {"expert_tokens_num_mode": 3},
                ValueError,
                "expert_tokens_num_mode must be 0 (none), 1 (totals) or 2 (counts), got 3",
                call,
            ),
            "active_num": Bad(
                {"active_num": -1}, ValueError, "active_num must be >= 0, got -1", call
            ),
            "offset": Bad(
                {"offset": torch.zeros(1)},
                ValueError,
                "offset must be None with quant_mode 1, got a tensor of shape (1,)",
                call,
            ),
            "capacity": Bad(
                {"drop_pad_mode": 1},
                ValueError,
                "expert_capacity must lie in [1, tokens] = [1, 6], got 0",
                lambda: call(expert_capacity=0),
            ),
        },
        value_errors={
            "expert_idx": Bad(
                {"expert_idx": torch.full((6, 2), 6, dtype=torch.int32)},
                IndexError,
                "expert_idx must lie in [0, expert_num] = [0, 5], got expert_idx[0] = 6",
                call,
            ),
        },
    ),
]
