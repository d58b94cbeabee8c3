"""npu_fused_infer_attention_score: torch's own attention in float64, sequence by sequence."""

import torch
from errors import Bad
from operators import Tested
from torch.nn.functional import scaled_dot_product_attention

TRIANGLE = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def numbers(shape, seed, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def shaped(layout, b, n, s, d):
    """Of a tensor in a layout; s is all tokens where they are packed."""
    sizes = {"B": b, "N": n, "S": s, "T": s, "D": d, "H": n * d}
    return [sizes[axis] for axis in layout]


def call(
    layout="BNSD", b=2, n=4, kv_n=2, s=3, s_kv=5, d=8, v_d=None, rope=0, dtype=torch.bfloat16,
    **kwargs,
):  # fmt: skip
    own = layout.partition("_")[0]
    made = {
        "query": numbers(shaped(own, b, n, s, d), 0, dtype),
        "key": numbers(shaped(own, b, kv_n, s_kv, d), 1, dtype),
        "value": numbers(shaped(own, b, kv_n, s_kv, v_d or d), 2, dtype),
        "num_heads": n,
        "num_key_value_heads": kv_n,
        "scale": 0.25,
        "input_layout": layout,
    }
    if rope:
        made["query_rope"] = numbers(shaped(own, b, n, s, rope), 3, dtype)
        made["key_rope"] = numbers(shaped(own, b, kv_n, s_kv, rope), 4, dtype)
    return {**made, **kwargs}


def packed(layout="TND", ends=(3, 3, 7), kv_ends=(5, 7, 11), **kwargs):
    return call(
        layout,
        s=ends[-1],
        s_kv=kv_ends[-1],
        actual_seq_lengths=list(ends),
        actual_seq_lengths_kv=list(kv_ends),
        **kwargs,
    )


def paged(form="BnNBsD", layout="BNSD", b=3, kv_n=2, d=16, rope=0, lengths=(5, 0, 8), **kwargs):
    """Pages in a random order; the table's rest points nowhere."""
    size, most = 4, 3
    made = call(
        layout, b=b, kv_n=kv_n, d=d, rope=rope, actual_seq_lengths_kv=list(lengths), **kwargs
    )
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    table = torch.full((len(lengths), most), 99, dtype=torch.int32)
    for i, length in enumerate(lengths):
        used = -(-length // size)
        table[i, :used] = order[i * most : i * most + used]
    for seed, (name, width) in enumerate({"key": d, "value": d, "key_rope": rope}.items()):
        shape = {
            "BnBsH": (20, size, kv_n * width),
            "BnNBsD": (20, kv_n, size, width),
            "NZ": (20, kv_n, width // 16, size, 16),
        }[form]
        if width:
            made[name] = numbers(shape, 6 + seed, made["query"].dtype)
    return {**made, "block_table": table, "block_size": size}


def masked(shape, mode=0, dtype=torch.bool, **kwargs):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(9)) < 0.4
    return call(atten_mask=mask.to(dtype), sparse_mode=mode, **kwargs)


def heads_first(x, layout, n):
    """A list of ``(n, s, d)``, one for each b."""
    if layout == "BSH":
        return [row.reshape(len(row), n, row.shape[1] // n).movedim(1, 0) for row in x]
    if layout == "BSND":
        return [row.movedim(1, 0) for row in x]
    if layout == "BNSD":
        return [*x]
    return [x.movedim(1, 0)] if layout == "TND" else [x]


def rows_of(x, table, length, kv_n, size):
    """``(kv_n, length, d)`` of one sequence, token by token out of its pages."""
    rows = []
    for place in range(length):
        page, row = x[int(table[place // size])], place % size
        if page.dim() == 2:
            rows.append(page[row].reshape(kv_n, -1))
        elif page.dim() == 3:
            rows.append(page[:, row])
        else:
            rows.append(torch.stack([head[:, row].reshape(-1) for head in page]))
    return torch.stack(rows, 1) if rows else None


def sequences(case, layout):
    """For each sequence q, k and v with their ropes joined, and where its queries lie."""
    n, kv_n = case["num_heads"], case.get("num_key_value_heads") or case["num_heads"]
    ends, kv_ends = case.get("actual_seq_lengths"), case.get("actual_seq_lengths_kv")
    is_packed = "T" in layout
    q = joined(case["query"], case.get("query_rope"), layout, n)
    count = len(ends) if is_packed else len(q)
    for i in range(count):
        if is_packed:
            first, last = ([0, *ends][i], ends[i])
            mine, where = q[0][:, first:last], (0, first)
        else:
            length = q[i].shape[1]
            if ends and length > 1:
                length = ends[0] if len(ends) == 1 else ends[i]
            mine, where = q[i][:, :length], (i, 0)
        if "block_table" in case:
            length, size = kv_ends[0 if len(kv_ends) == 1 else i], case["block_size"]
            parts = [
                rows_of(case[name], case["block_table"][i], length, kv_n, size)
                for name in ("key", "value", "key_rope")
                if name in case
            ]
            k, v = parts[:2]
            k = torch.cat([k, parts[2]], -1) if len(parts) == 3 and length else k
        else:
            k = joined(case["key"], case.get("key_rope"), layout, kv_n)
            v = heads_first(case["value"], layout, kv_n)
            if is_packed:
                part = slice([0, *kv_ends][i], kv_ends[i])
                k, v = k[0][:, part], v[0][:, part]
            else:
                length = k[i].shape[1]
                if kv_ends:
                    length = kv_ends[0] if len(kv_ends) == 1 else kv_ends[i]
                k, v = k[i][:, :length], v[i][:, :length]
        yield i, mine, k, v, where


def joined(x, rope, layout, n):
    parts = heads_first(x, layout, n)
    if rope is None:
        return parts
    return [torch.cat(pair, -1) for pair in zip(parts, heads_first(rope, layout, n))]


def seen(case, i, s, s_kv, all_queries):
    """``(s, s_kv)``, element by element."""
    mode, mask = case.get("sparse_mode", 0), case.get("atten_mask")
    before, after = case.get("pre_tokens", 1 << 40), case.get("next_tokens", 1 << 40)
    is_decode = all_queries == 1 and "query_rope" not in case
    table = torch.ones(s, s_kv, dtype=torch.bool)
    for row in range(s):
        for column in range(s_kv):
            if mode in (0, 1) and mask is not None:
                if mask.dim() == 2:
                    hidden = mask[i if len(mask) > 1 else 0] if all_queries == 1 else mask[row]
                else:
                    hidden = mask[i if len(mask) > 1 else 0].reshape(-1, mask.shape[-1])[row]
                ahead = column - row
                is_outside = not -before <= ahead <= after and mode == 0 and not is_decode
                table[row, column] = not bool(hidden[column]) and not is_outside
            elif mode == 2 and not is_decode:
                table[row, column] = column <= row
            elif mode == 3 and not is_decode:
                table[row, column] = column - row <= s_kv - s
            elif mode == 4 and not is_decode:
                table[row, column] = -before <= column - row - (s_kv - s) <= after
    return table


def oracle(**case):
    layout = case["input_layout"].partition("_")[0]
    out_layout = case["input_layout"].rpartition("_")[2]
    n = case["num_heads"]
    q = heads_first(case["query"], layout, n)
    v_d = None
    found = []
    for i, mine, k, v, where in sequences(case, layout):
        all_queries = q[0].shape[1] if "T" not in layout else -1
        if k is None or not k.shape[1] or not mine.shape[1]:
            continue
        v_d = v.shape[-1]
        table = seen(case, i, mine.shape[1], k.shape[1], all_queries)
        bias = torch.zeros(n, *table.shape, dtype=torch.float64)
        if "pse_shift" in case:
            pse = case["pse_shift"][i if len(case["pse_shift"]) > 1 else 0]
            bias = bias + pse[:, : len(table), : table.shape[1]].double()
        bias = bias.masked_fill(~table, -torch.inf)
        group = n // len(k)
        k, v = (x.double().repeat_interleave(group, 0) for x in (k, v))
        result = scaled_dot_product_attention(mine.double(), k, v, bias, scale=case["scale"])
        sums = torch.logsumexp(mine.double() @ k.transpose(1, 2) * case["scale"] + bias, -1)
        nothing = ~table.any(-1)
        result[:, nothing], sums[:, nothing] = 0, torch.inf
        found.append((where, result, sums))
    v_d = v_d or case["query"].shape[-1]
    b, rows = (
        (1, q[0].shape[1]) if "T" in layout else (len(q), case["query"].shape[layout.find("S")])
    )
    out = torch.zeros(b, n, rows, v_d, dtype=torch.float64)
    lse = torch.full((*out.shape[:3], 1), torch.inf)
    for (i, first), result, sums in found:
        out[i, :, first : first + result.shape[1]] = result
        lse[i, :, first : first + result.shape[1], 0] = sums.float()
    if "T" in layout:
        lse = lse[0].movedim(0, 1)
    order = {"BSH": (0, 2, 1, 3), "BSND": (0, 2, 1, 3), "NBSD": (1, 0, 2, 3), "BNSD": (0, 1, 2, 3)}
    if out_layout in order:
        out = out.permute(order[out_layout])
        out = out.flatten(2) if out_layout == "BSH" else out
    else:
        out = out[0].movedim(0, 1) if out_layout == "TND" else out[0]
    lse = lse.contiguous() if case.get("softmax_lse_flag") else torch.zeros(0)
    return out.to(case["query"].dtype).contiguous(), lse


LAYOUTS = (
    "BSH", "BSND", "BNSD", "BNSD_BSND", "BSH_BNSD", "BSND_BNSD", "BSH_NBSD", "BSND_NBSD",
    "BNSD_NBSD",
)  # fmt: skip
LENGTHS = {"actual_seq_lengths": [2, 3], "actual_seq_lengths_kv": [5, 4]}
CAUSAL = {"atten_mask": TRIANGLE, "softmax_lse_flag": True, "s": 4}

SAMPLES = {
    **{layout: lambda layout=layout: call(layout, softmax_lse_flag=True) for layout in LAYOUTS},
    **{
        layout: lambda layout=layout: packed(layout)
        for layout in ("TND", "NTD", "TND_NTD", "NTD_TND")
    },
    "float16": lambda: call(dtype=torch.float16),
    "no_groups": lambda: call(kv_n=4, num_key_value_heads=0),
    "lengths": lambda: call(**LENGTHS, softmax_lse_flag=True),
    "one_length_for_all": lambda: call(actual_seq_lengths=[2], actual_seq_lengths_kv=[4]),
    "decode": lambda: call(s=1, **LENGTHS),
    "ropes": lambda: call(rope=4),
    "ropes_BSH": lambda: call("BSH", rope=4),
    "other_d_of_value": lambda: call(v_d=6, rope=4),
    "other_d_of_value_BSH": lambda: call("BSH", v_d=6),
    "pse": lambda: call(pse_shift=numbers((1, 4, 3, 5), 8)),
    "pse_larger": lambda: call(pse_shift=numbers((2, 4, 8, 8), 8)),
    "mask": lambda: masked((3, 5)),
    "mask_of_batch": lambda: masked((2, 3, 5), dtype=torch.int8, softmax_lse_flag=True),
    "mask_of_four_axes": lambda: masked((2, 1, 3, 5), dtype=torch.uint8, mode=1),
    "mask_of_decode": lambda: masked((2, 5), s=1),
    "mask_wider": lambda: masked((1, 1, 3, 9)),
    "mask_in_a_band": lambda: masked((3, 5), pre_tokens=1, next_tokens=1),
    "mask_alone": lambda: masked((3, 5), mode=1, pre_tokens=0, next_tokens=0),
    "all_masked": lambda: call(
        atten_mask=torch.ones(3, 5, dtype=torch.bool), softmax_lse_flag=True
    ),
    "left_up": lambda: call(sparse_mode=2, **CAUSAL),
    "right_down": lambda: call(sparse_mode=3, **CAUSAL),
    "right_down_more_queries": lambda: call(sparse_mode=3, s_kv=2, **CAUSAL),
    "right_down_lengths": lambda: call(sparse_mode=3, **CAUSAL, **LENGTHS),
    "right_down_decode": lambda: call(sparse_mode=3, atten_mask=TRIANGLE, s=1),
    "band": lambda: call(sparse_mode=4, pre_tokens=2, next_tokens=1, **CAUSAL),
    "packed_causal": lambda: packed(sparse_mode=3, atten_mask=TRIANGLE, softmax_lse_flag=True),
    "packed_ropes": lambda: packed("NTD_TND", rope=4),
    "packed_with_a_rest": lambda: packed(ends=(2, 5, 5), kv_ends=(3, 3, 9)),
    **{
        f"pages_{form}": lambda form=form: paged(form, rope=16, softmax_lse_flag=True)
        for form in ("BnBsH", "BnNBsD", "NZ")
    },
    "pages_BSH": lambda: paged("BnBsH", "BSH"),
    "pages_decode": lambda: paged(s=1, kv_n=1, rope=16),
    "pages_causal": lambda: paged(s=4, sparse_mode=3, atten_mask=TRIANGLE),
    "pages_packed": lambda: paged(
        layout="TND", s=6, actual_seq_lengths=[1, 4, 6], sparse_mode=3, atten_mask=TRIANGLE
    ),
    "pages_mask": lambda: {
        **paged(),
        "atten_mask": torch.rand(3, 3, 12, generator=torch.Generator().manual_seed(9)) < 0.4,
    },
    "no_keys": lambda: call(actual_seq_lengths_kv=[0]),
    "no_batch": lambda: call(b=0),
    "one_of_all": lambda: call(b=1, n=1, kv_n=1, s=1, s_kv=1),
    "large": lambda: call(b=2, n=8, kv_n=2, s=64, s_kv=200, d=128),
}


def wrong(change, error, message, base=call):
    return Bad(change, error, message, base)


TESTED = [
    Tested(
        name="npu_fused_infer_attention_score",
        samples=SAMPLES,
        oracle=oracle,
        node="FusedInferAttentionScore",
        decomposed=False,
        attributes=lambda case: {
            "num_heads": case["num_heads"],
            "scale": case["scale"],
            "sparse_mode": case.get("sparse_mode", 0),
        },
        tolerance=2**-8,
        why="the oracle sums in float64, the kernel in float32, so that a rounding may differ",
        errors={
            "layout": wrong(
                {"input_layout": "BNDS"},
                ValueError,
                "input_layout must be 'BSH', 'BSND', 'BNSD', ",
            ),
            "query_dtype": wrong(
                {"query": torch.zeros(2, 4, 3, 8)},
                TypeError,
                "query must be float16 or bfloat16, got float32",
            ),
            "query_rank": wrong(
                {"query": torch.zeros(2, 4, 8).bfloat16()},
                ValueError,
                "query must be 4-D in layout BNSD, got shape (2, 4, 8)",
            ),
            "heads": wrong(
                {"num_heads": 8},
                ValueError,
                "query must have num_heads = 8 in axis 1, got shape (2, 4, 3, 8)",
            ),
            "groups": wrong(
                {"num_key_value_heads": 3},
                ValueError,
                "num_key_value_heads must be 0 or divide num_heads = 4, got 3",
            ),
            "key_d": wrong(
                {"key": torch.zeros(2, 2, 5, 6).bfloat16()},
                ValueError,
                "key must have the d of query, 8, got 6",
            ),
            "key_int8": wrong(
                {"key": torch.zeros(2, 2, 5, 8, dtype=torch.int8)},
                NotImplementedError,
                "key of int8 is not supported yet; supported is attention over float16 and",
            ),
            "value_tokens": wrong(
                {"value": torch.zeros(2, 2, 4, 8).bfloat16()},
                ValueError,
                "value must have the tokens of key = 5 in axis 2, got shape (2, 2, 4, 8)",
            ),
            "one_rope": wrong(
                {"query_rope": torch.zeros(2, 4, 3, 4).bfloat16()},
                ValueError,
                "key_rope is required with query_rope: expected both or neither, got None",
            ),
            "prefix": wrong(
                {"key_shared_prefix": torch.zeros(1, 2, 5, 8).bfloat16()},
                NotImplementedError,
                "key_shared_prefix is not supported yet and must be None, got a tensor of shape",
            ),
            "quant_scale2": wrong(
                {"quant_scale2": torch.ones(1)},
                NotImplementedError,
                "quant_scale2 is not supported yet and must be None, got a tensor of shape (1,);",
            ),
            "antiquant_mode": wrong(
                {"key_antiquant_mode": 1},
                NotImplementedError,
                "key_antiquant_mode must be 0, got 1; supported is attention over float16 and",
            ),
            "sparse_mode": wrong(
                {"sparse_mode": 5}, ValueError, "sparse_mode must be 0 (the mask within the band), "
            ),
            "mask_missing": wrong(
                {"sparse_mode": 3}, ValueError, "atten_mask is required for sparse_mode 3, got None"
            ),
            "mask_of_a_triangle": wrong(
                {"sparse_mode": 2, "atten_mask": torch.zeros(3, 5, dtype=torch.bool)},
                ValueError,
                "atten_mask must be (2048, 2048), or that behind axes of one, for sparse_mode 2, "
                "got shape (3, 5)",
            ),
            "mask_shape": wrong(
                {"atten_mask": torch.zeros(3, 4, dtype=torch.bool)},
                ValueError,
                "atten_mask must be (s, s_kv), (b or 1, s, s_kv) or (b or 1, 1, s, s_kv), with one "
                "query (b, s_kv), where b = 2, s = 3 and s_kv at least 5, got shape (3, 4)",
            ),
            "mask_dtype": wrong(
                {"atten_mask": torch.zeros(3, 5)},
                TypeError,
                "atten_mask must be bool or int8 or uint8, got float32",
            ),
            "mask_packed": wrong(
                {"atten_mask": torch.zeros(3, 5, dtype=torch.bool)},
                NotImplementedError,
                "atten_mask for sparse_mode 0 is not supported yet in layout TND; supported is",
                packed,
            ),
            "pse_shape": wrong(
                {"pse_shift": torch.zeros(2, 3, 3, 5).bfloat16()},
                ValueError,
                "pse_shift must be (b or 1, n, s, s_kv), where b = 2, n = 4, s at least 3 and s_kv "
                "at least 5, got shape (2, 3, 3, 5)",
            ),
            "count_of_lengths": wrong(
                {"actual_seq_lengths_kv": [1, 2]},
                ValueError,
                "actual_seq_lengths_kv must have 1 element or the b = 3 of query, got 2",
                lambda: call(b=3),
            ),
            "lengths_missing": wrong(
                {"actual_seq_lengths": None},
                ValueError,
                "actual_seq_lengths is required in layout TND, got None",
                packed,
            ),
            "lengths_of_pages": wrong(
                {"actual_seq_lengths_kv": None},
                ValueError,
                "actual_seq_lengths_kv is required with block_table, got None",
                paged,
            ),
            "block_size": wrong(
                {"block_size": 8},
                ValueError,
                "key must have block_size = 8 in axis 2, got shape (20, 2, 4, 16)",
                paged,
            ),
            "table_dtype": wrong(
                {"block_table": torch.zeros(3, 3, dtype=torch.int64)},
                TypeError,
                "block_table must be int32, got int64",
                paged,
            ),
            "table_rows": wrong(
                {"block_table": torch.zeros(2, 3, dtype=torch.int32)},
                ValueError,
                "block_table must have the b of query = 3 in axis 0, got shape (2, 3)",
                paged,
            ),
        },
        value_errors={
            "long": wrong(
                {"actual_seq_lengths_kv": [5, 6]},
                ValueError,
                "actual_seq_lengths_kv must lie in [0, 5], got actual_seq_lengths_kv[1] = 6",
            ),
            "page": wrong(
                {"block_table": torch.full((3, 3), 20, dtype=torch.int32)},
                IndexError,
                "block_table must lie in [0, 20), the pages of key, got block_table[0, 0] = 20",
                paged,
            ),
            "negative": wrong(
                {"actual_seq_lengths": [-1]},
                ValueError,
                "actual_seq_lengths must lie in [0, 3], got actual_seq_lengths[0] = -1",
            ),
            "falling": wrong(
                {"actual_seq_lengths": [3, 2, 7]},
                ValueError,
                "actual_seq_lengths must lie in [0, 7] and not fall, got actual_seq_lengths[1] = 2",
                packed,
            ),
        },
    ),
]
