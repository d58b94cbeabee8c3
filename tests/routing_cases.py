"""Choices of a gate by name, and what routing them means, as a loop that a reader can check."""

import torch


def gate(tokens=8, top_k=3, experts=8, seed=0, dtype=torch.int64, **kwargs):
    """Each token goes to top_k different experts."""
    made = torch.Generator().manual_seed(seed)
    weights, ids = torch.rand(tokens, experts, generator=made).topk(top_k)
    arguments = {"topk_ids": ids.to(dtype), "topk_weights": weights, "num_experts": experts}
    return {**arguments, **kwargs}


CASES = {
    "counts": gate(),
    "totals": gate(group_list_type=0),
    "int32": gate(dtype=torch.int32),
    "bfloat16_weights": gate(topk_weights=gate()["topk_weights"].bfloat16()),
    "not_contiguous": gate(topk_ids=gate()["topk_ids"].t().contiguous().t()),
    "one_token": gate(tokens=1),
    "top_1": gate(top_k=1),
    "one_expert": gate(top_k=1, experts=1),
    "more_experts_than_rows": gate(tokens=3, experts=256, top_k=8),
    "many_tokens": gate(tokens=1000, experts=64, top_k=8),
    "the_same_expert_twice": gate(topk_ids=torch.full((8, 3), 5)),
    "range_counts": gate(expert_range=(2, 5)),
    "range_totals": gate(expert_range=(2, 5), group_list_type=0),
    "range_first": gate(expert_range=(0, 1)),
    "range_last": gate(expert_range=(7, 8), group_list_type=0),
    "range_of_all": gate(expert_range=(0, 8)),
    "range_without_rows": gate(topk_ids=torch.full((8, 3), 5), expert_range=(0, 4)),
    "range_without_rows_totals": gate(
        topk_ids=torch.full((8, 3), 5), expert_range=(6, 8), group_list_type=0
    ),
    "dropped": gate(topk_ids=gate()["topk_ids"].masked_fill(torch.arange(8)[:, None] % 3 == 0, -1)),
    "dropped_past_the_end": gate(topk_ids=torch.tensor([[8, 0, 2], [9, 1, 0]] * 4)),
}


def loop(topk_ids, topk_weights, num_experts, group_list_type=1, expert_range=None):
    """Expert by expert, token by token, slot by slot; then what no local expert takes."""
    first, last = expert_range or (0, num_experts)
    tokens, top_k = topk_ids.shape
    slots = [(t, s) for t in range(tokens) for s in range(top_k)]
    chosen = {slot: int(topk_ids[slot]) for slot in slots}
    taken = [[slot for slot in slots if chosen[slot] == g] for g in range(first, last)]
    tail = [slot for slot in slots if not first <= chosen[slot] < last]
    rows = [slot for group in (*taken, tail) for slot in group]
    counts = [len(group) for group in taken]
    totals = [sum(counts[: g + 1]) for g in range(len(counts))]
    return (
        torch.tensor([t * top_k + s for t, s in rows]),
        torch.tensor([t for t, _ in rows]),
        torch.stack([topk_weights[slot].float() for slot in rows]),
        torch.tensor(counts if group_list_type == 1 else totals),
    )
