"""Legal calls, by name: every test of what the operator computes runs over this table."""

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

INT64_GARBAGE = torch.tensor([2**40, -5])


def call(
    *,
    m=24,
    k=64,
    n=64,
    counts=(7, 0, 12, 5),
    output_bs=6,
    shared_rows=2,
    seed=0,
    bias=None,
    index_dtype=torch.int64,
    **kwargs,
):
    """A call with both logit and shared_input, as keyword arguments; kwargs replace or add.

    counts says how many rows each group has; rows past their sum are tail rows.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator) - 0.5

    def integers(low, high, *shape, dtype=torch.int8):
        return torch.randint(low, high, shape, generator=generator, dtype=dtype)

    e = len(counts)
    made = {
        "x": integers(-128, 128, m, k),
        "w": integers(-128, 128, e, k, n),
        "group_list": torch.tensor(counts),
        "scale": uniform(e, n) * 0.1,
        "pertoken_scale": uniform(m) * 0.1,
        "logit": uniform(m),
        "row_index": integers(0, output_bs or m, m, dtype=index_dtype),
        "output_bs": output_bs,
    }
    if shared_rows:
        made["shared_input"] = uniform(shared_rows, n).bfloat16()
        made["shared_input_offset"] = 1
        made["shared_input_weight"] = 0.3
    if bias is not None:
        made["bias"] = uniform(e, n).to(bias)
    made.update(kwargs)
    return made


def document():
    """The example of the interface document: 8 experts of (2048, 7168), 72 tokens of 8 rows."""
    made = call(m=576, k=2048, n=7168, counts=(72,) * 8, output_bs=72, shared_rows=18)
    made["x"].clamp_(-10, 9)
    made["w"].clamp_(-10, 9)
    made["pertoken_scale"] = made["pertoken_scale"].unsqueeze(1)
    made["shared_input_offset"] = 36
    made["shared_input_weight"] = 1.0
    return made


def tail_of_garbage():
    """Rows past the last group hold what no row may hold."""
    made = call(m=30, counts=(7, 0, 12, 5), bias=torch.float32)
    made["row_index"][24:] = INT64_GARBAGE.repeat(3)
    made["pertoken_scale"][24:] = float("nan")
    made["logit"][24:] = float("inf")
    return made


def constant(x, w, k):
    return call(
        k=k,
        x=torch.full((24, k), x, dtype=torch.int8),
        w=torch.full((4, k, 64), w, dtype=torch.int8),
    )


def large_sums():
    """Sums of several times 2**24, whose float32 would be rounded more than once."""
    made = call(m=5, k=4100, n=16, counts=(3, 2), output_bs=5, shared_rows=0)
    made["x"].clamp_(min=100)
    made["w"].clamp_(min=100)
    return made


def fractal_nz(k=64, n=64, **kwargs):
    """A 5-D weight; where k is not a multiple of 16 its padding is garbage, not zeros."""
    w5 = call(k=32 * n, n=-(-k // 16) * 16)["w"].reshape(4, -1, -(-k // 16), 16, 32)[:, : n // 32]
    return call(k=k, n=n, w=w5.contiguous(), **kwargs)


def strided():
    """The same numbers behind strides of every kind."""
    made = call(bias=torch.bfloat16, m=24)
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            if value.dim() == 1:
                made[name] = value.repeat_interleave(3)[1::3]
            else:
                made[name] = value.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not any(v.is_contiguous() for v in made.values() if isinstance(v, torch.Tensor))
    return made


def offset_storage():
    """Tensors that start inside a larger storage, at odd addresses."""
    made = call()
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            flat = torch.cat([value.new_zeros(1), value.reshape(-1)])
            made[name] = flat[1:].view(value.shape)
    return made


def without(*names, **kwargs):
    made = call(**kwargs)
    for name in names:
        made[name] = None
    return made


def symbolic(case):
    """The call with fake tensors, whose sizes are symbols where they can be."""
    mode = torch._subclasses.FakeTensorMode(shape_env=ShapeEnv())
    return {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in case.items()}


# The document's weights take a quarter of a gigabyte in this test; it is its own table.
FULL_SIZE = {"document": document}

CASES = {
    "both": call,
    "no_pertoken_scale": lambda: without("pertoken_scale"),
    "logit_alone": lambda: call(shared_rows=0),
    "logit_alone_no_pertoken_scale": lambda: without("pertoken_scale", shared_rows=0),
    "neither": lambda: without("logit", shared_rows=0),
    "neither_no_pertoken_scale": lambda: without("logit", "pertoken_scale", shared_rows=0),
    "bias": lambda: call(bias=torch.float32),
    "bias_bfloat16": lambda: call(bias=torch.bfloat16),
    "bias_no_pertoken_scale": lambda: without("pertoken_scale", bias=torch.bfloat16),
    "bias_logit_alone": lambda: call(bias=torch.bfloat16, shared_rows=0),
    "bias_neither": lambda: without("logit", bias=torch.bfloat16, shared_rows=0),
    "bias_alone": lambda: without("logit", "pertoken_scale", bias=torch.bfloat16, shared_rows=0),
    "every_scalar_none": lambda: call(
        output_bs=None,
        shared_input_weight=None,
        shared_input_offset=None,
        group_list_type=None,
        dtype=None,
        tuning_config=None,
    ),
    "dtype_float32": lambda: call(dtype=torch.float32),
    "tuning_config": lambda: call(tuning_config=[4, 1]),
    "output_bs_zero": lambda: call(output_bs=0),
    "counts": lambda: call(group_list_type=1),
    "totals": lambda: call(group_list_type=0, group_list=torch.tensor([7, 7, 19, 24])),
    "totals_with_tail": lambda: call(group_list_type=0, group_list=torch.tensor([0, 7, 19, 19])),
    "totals_of_two_groups": lambda: call(
        counts=(7, 17), group_list_type=0, group_list=torch.tensor([7, 24])
    ),
    "totals_of_one_group": lambda: call(
        counts=(24,), group_list_type=0, group_list=torch.tensor([24])
    ),
    "first_and_last_group_empty": lambda: call(counts=(0, 0, 20, 4, 0)),
    "all_rows_in_one_group": lambda: call(counts=(0, 24, 0)),
    "one_group": lambda: call(counts=(24,)),
    "every_group_empty": lambda: call(counts=(0, 0, 0)),
    "tail_of_garbage": tail_of_garbage,
    "tail_alone": lambda: call(counts=(0, 0), row_index=torch.full((24,), -1)),
    "row_index_int32": lambda: call(index_dtype=torch.int32),
    "scale_bfloat16": lambda: call(scale=call()["scale"].bfloat16()),
    "pertoken_scale_2d": lambda: call(pertoken_scale=call()["pertoken_scale"].unsqueeze(1)),
    "fractal_nz": fractal_nz,
    "fractal_nz_padded": lambda: fractal_nz(k=33, n=128, bias=torch.bfloat16),
    "fractal_nz_thin": lambda: fractal_nz(k=3, n=32),
    "all_minus_128": lambda: constant(-128, -128, 2048),
    "all_127": lambda: constant(127, 127, 2048),
    "minus_128_by_127": lambda: constant(-128, 127, 8192),
    "large_sums": large_sums,
    "one_row_each": lambda: call(m=4, counts=(1, 1, 1, 1), output_bs=3),
    "groups_of_many_blocks": lambda: call(counts=(9, 5, 5, 5)),
    "every_row_to_one_token": lambda: call(row_index=torch.full((24,), 3)),
    "unhit_tokens": lambda: call(row_index=torch.arange(24) % 2 * 4),
    "shared_input_first": lambda: call(shared_input_offset=0),
    "shared_input_last": lambda: call(shared_input_offset=4),
    "shared_input_everywhere": lambda: call(shared_rows=6, shared_input_offset=0),
    # Legal, and without effect: there is no row that either could apply to.
    "shared_input_settings_alone": lambda: call(
        shared_rows=0, shared_input_offset=6, shared_input_weight=float("inf")
    ),
    "negative_zeros": lambda: call(
        logit=torch.zeros(24),
        shared_input=-torch.zeros(2, 64, dtype=torch.bfloat16),
        row_index=torch.zeros(24, dtype=torch.int64),
    ),
    "negative_zeros_under_a_tail": lambda: call(
        counts=(0, 0),
        output_bs=1,
        shared_input=-torch.zeros(1, 64, dtype=torch.bfloat16),
        shared_input_offset=0,
    ),
    "infinite_scale_that_counts": lambda: call(
        row_index=torch.arange(24),
        output_bs=24,
        pertoken_scale=torch.ones(24).index_fill(0, torch.tensor([3, 17]), float("inf")),
    ),
    "strided": strided,
    "offset_storage": offset_storage,
    "m_1": lambda: call(m=1, counts=(0, 1), output_bs=1, shared_rows=1, shared_input_offset=0),
    "m_1_pertoken_scale_2d": lambda: call(
        m=1, counts=(1,), output_bs=1, shared_rows=0, pertoken_scale=torch.full((1, 1), 0.3)
    ),
    "k_1": lambda: call(k=1),
    "n_1": lambda: call(n=1),
    "odd_sizes": lambda: call(m=37, k=1037, n=61, counts=(5, 17, 1, 11)),
    "experts_256": lambda: call(
        m=300, k=16, n=32, counts=[(7 * g) % 3 for g in range(256)], output_bs=40
    ),
}
