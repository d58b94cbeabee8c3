"""npu_moe_gating_top_k, token by token."""

import torch
from errors import Bad
from operators import Tested


def call(tokens=6, experts=16, k=3, dtype=torch.float32, bias=True, ties=False, **kwargs):
    generator = torch.Generator().manual_seed(17)
    x = torch.randn(tokens, experts, generator=generator) * 2
    made = {"x": (x.round() / 2 if ties else x).to(dtype), "k": k}
    if bias:
        made["bias"] = (torch.randn(experts, generator=generator) / 4).to(dtype)
    return {**made, **kwargs}


def deepseek(**kwargs):
    """What vllm-ascend passes for DeepSeek-V3."""
    given = {"k_group": 2, "group_count": 4, "group_select_mode": 1, "norm_type": 1, "eps": 1e-20}
    return call(**{**given, **kwargs})


def tied(**kwargs):
    """Equal scores in a row, and groups of equal scores."""
    made = deepseek(experts=20, bias=False, ties=True, k=6, **kwargs)
    made["x"][0] = 0.25
    made["x"][1] = made["x"][1, :5].repeat(4)
    return made


def equal_sigmoids():
    """A number of which torch.sigmoid makes two, by where in a row it stands."""
    return {"x": torch.full((1, 37), -0.828125), "k": 9, "norm_type": 1, "bias": torch.zeros(37)}


def hashed(**kwargs):
    made = call(bias=False, norm_type=1, **kwargs)
    made["input_ids"] = torch.tensor([0, 3, 3, 1, 2, 0])
    made["tid2eid"] = torch.tensor([[5, 0, 9], [1, 2, 3], [15, 14, 13], [8, 4, 6]]).int()
    return made


def oracle(
    x,
    k,
    bias=None,
    input_ids=None,
    tid2eid=None,
    k_group=1,
    group_count=1,
    group_select_mode=0,
    renorm=0,
    norm_type=0,
    out_flag=False,
    routed_scaling_factor=1.0,
    eps=1e-20,
):
    experts = x.shape[1]
    size = experts // group_count
    weights, ids, norms = [], [], []
    for token, row in enumerate(x.float()):
        # One number at a time and in one way, so that equal inputs are equal scores.
        if norm_type == 0:
            powers = [torch.exp(each - row.max()) for each in row]
            total = torch.tensor(0.0)
            for power in powers:
                total = total + power
            norm = [power / total for power in powers]
        else:
            norm = [1 / (1 + torch.exp(-each)) for each in row]
        score = [float(each if bias is None else each + bias[e].float())
                 for e, each in enumerate(norm)]  # fmt: skip
        parts = [sorted(score[g * size : (g + 1) * size]) for g in range(group_count)]
        if group_select_mode == 0:
            of_group = [part[-1] for part in parts]
        else:
            of_group = [sum(torch.tensor(part[-2:])) for part in parts]
        best = sorted(range(group_count), key=lambda g, of=of_group: (-of[g], g))[:k_group]
        among = [e for e in range(experts) if e // size in best]
        chosen = sorted(among, key=lambda e, score=score: (-score[e], e))[:k]
        if tid2eid is not None:
            chosen = tid2eid[input_ids[token]].tolist()
        picked = torch.stack([norm[e] for e in chosen])
        if norm_type == 1 or renorm == 1:
            picked = picked / (picked.sum() + eps)
        weights.append(picked * routed_scaling_factor)
        ids.append(chosen)
        norms.append(torch.stack(norm) if out_flag else torch.zeros(experts))
    if not weights:
        return x.new_empty(0, k), torch.empty(0, k, dtype=torch.int32), torch.empty(0, experts)
    return (
        torch.stack(weights).to(x.dtype),
        torch.tensor(ids, dtype=torch.int32),
        torch.stack(norms),
    )


TESTED = [
    Tested(
        name="npu_moe_gating_top_k",
        samples={
            "deepseek": deepseek,
            "softmax": lambda: call(out_flag=True),
            "softmax_renorm": lambda: call(renorm=1, routed_scaling_factor=2.5),
            "gpt_oss": lambda: call(bias=False, group_select_mode=1, dtype=torch.float16),
            "sigmoid": lambda: call(norm_type=1, out_flag=True),
            "bfloat16": lambda: deepseek(dtype=torch.bfloat16),
            "float16": lambda: deepseek(dtype=torch.float16, routed_scaling_factor=2.5),
            "largest_of_group": lambda: deepseek(group_select_mode=0),
            "one_of_each_group": lambda: call(
                experts=4, group_count=4, k_group=2, k=2, norm_type=1
            ),
            "all_groups": lambda: deepseek(k_group=4),
            "epsilon": lambda: deepseek(eps=0.5),
            "equal_scores": tied,
            "equal_scores_largest": lambda: tied(group_select_mode=0),
            "equal_sigmoids": equal_sigmoids,
            "equal_softmax": lambda: call(ties=True, bias=False, k=9),
            "all_experts": lambda: call(k=16),
            "hashed": hashed,
            "hashed_softmax": lambda: {**hashed(), "norm_type": 0, "renorm": 1},
            "one_token": lambda: deepseek(tokens=1),
            "no_tokens": lambda: deepseek(tokens=0),
            "large": lambda: deepseek(tokens=50, experts=256, k=8, k_group=4, group_count=8),
        },
        decomposed=False,
        oracle=oracle,
        node="MoeGatingTopK",
        attributes=lambda case: {
            name: case[name]
            for name in ("k", "k_group", "group_count", "group_select_mode", "norm_type", "renorm")
            if name in case
        },
        tolerance=2**-20,
        why="the oracle takes its sums in another order",
        errors={
            "dtype": Bad(
                {"x": torch.zeros(6, 16, dtype=torch.int32)},
                TypeError,
                "x must be float16 or bfloat16 or float32, got int32",
                call,
            ),
            "rank": Bad(
                {"x": torch.zeros(16)},
                ValueError,
                "x must be 2-D (tokens, experts), got shape (16,)",
                call,
            ),
            "bias_dtype": Bad(
                {"bias": torch.zeros(16).half()},
                TypeError,
                "bias must be float32, got float16",
                call,
            ),
            "bias_shape": Bad(
                {"bias": torch.zeros(15)},
                ValueError,
                "bias must be (experts,) = (16,), got shape (15,)",
                call,
            ),
            "k": Bad(
                {"k": 9},
                ValueError,
                "k must lie in [1, k_group * experts / group_count] = [1, 8], got 9",
                deepseek,
            ),
            "k_zero": Bad(
                {"k": 0},
                ValueError,
                "k must lie in [1, k_group * experts / group_count] = [1, 8], got 0",
                deepseek,
            ),
            "k_group": Bad(
                {"k_group": 5},
                ValueError,
                "k_group must lie in [1, group_count] = [1, 4], got 5",
                deepseek,
            ),
            "group_count": Bad(
                {"group_count": 0}, ValueError, "group_count must be >= 1, got 0", call
            ),
            "uneven_groups": Bad(
                {"group_count": 3},
                ValueError,
                "group_count must divide the experts, 16, got 3",
                call,
            ),
            "small_groups": Bad(
                {"group_count": 16},
                ValueError,
                "group_count must leave a group at least 2 experts for group_select_mode 1, "
                "got 16 groups of 1",
                deepseek,
            ),
            "group_select_mode": Bad(
                {"group_select_mode": 2},
                ValueError,
                "group_select_mode must be 0 (the largest) or 1 (the sum of the two largest), "
                "got 2",
                call,
            ),
            "renorm": Bad(
                {"renorm": 2},
                ValueError,
                "renorm must be 0 (as norm_type has it) or 1 (weights that sum to one), got 2",
                call,
            ),
            "norm_type": Bad(
                {"norm_type": 2},
                ValueError,
                "norm_type must be 0 (softmax) or 1 (sigmoid), got 2",
                call,
            ),
            "no_table": Bad(
                {"tid2eid": None},
                ValueError,
                "tid2eid is required with input_ids, got None",
                hashed,
            ),
            "no_ids": Bad(
                {"input_ids": None},
                ValueError,
                "input_ids is required with tid2eid, got None",
                hashed,
            ),
            "ids_shape": Bad(
                {"input_ids": torch.zeros(5).int()},
                ValueError,
                "input_ids must be (tokens,) = (6,), got shape (5,)",
                hashed,
            ),
            "table_shape": Bad(
                {"tid2eid": torch.zeros(4, 2).int()},
                ValueError,
                "tid2eid must be (ids, k) = (4, 3), got shape (4, 2)",
                hashed,
            ),
        },
        value_errors={
            "ids": Bad(
                {"input_ids": torch.tensor([0, 4, 0, 0, 0, 0])},
                IndexError,
                "input_ids must lie in [0, ids) = [0, 4), got input_ids[1] = 4",
                hashed,
            ),
            "table": Bad(
                {"tid2eid": torch.full((4, 3), 16)},
                IndexError,
                "tid2eid must lie in [0, experts) = [0, 16), got tid2eid[0] = 16",
                hashed,
            ),
        },
    )
]
