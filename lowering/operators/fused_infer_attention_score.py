"""npu_fused_infer_attention_score and its second version: attention for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import SymInt, Tensor

from npu_lowering.operators import attention, attention_checks
from npu_lowering.operators.attention import Attention
from npu_lowering.operators.checking import (
    check_choice,
    must_be_none,
    require,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator

_LAYOUTS = {
    "BSH": ("BSH", "BSH"),
    "BSND": ("BSND", "BSND"),
    "BNSD": ("BNSD", "BNSD"),
    "BNSD_BSND": ("BNSD", "BSND"),
    "BSH_BNSD": ("BSH", "BNSD"),
    "BSND_BNSD": ("BSND", "BNSD"),
    "BSH_NBSD": ("BSH", "NBSD"),
    "BSND_NBSD": ("BSND", "NBSD"),
    "BNSD_NBSD": ("BNSD", "NBSD"),
    "TND": ("TND", "TND"),
    "NTD": ("NTD", "NTD"),
    "TND_NTD": ("TND", "NTD"),
    "NTD_TND": ("NTD", "TND"),
}
_SPARSE: dict[object, str] = {
    attention.FULL: "the mask within the band",
    attention.MASK_ALONE: "the mask",
    attention.LEFT_UP_CAUSAL: "causal from the first key",
    attention.RIGHT_DOWN_CAUSAL: "causal up to the last key",
    attention.BAND: "the band up to the last key",
}
_SUPPORTED = attention_checks.SUPPORTED


def check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[SymInt] | None = None,
    actual_seq_lengths_kv: Sequence[SymInt] | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Sequence[SymInt] | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = attention.UNLIMITED,
    next_tokens: int = attention.UNLIMITED,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
) -> Attention:
    """Attention of n query heads over keys and values in a cache or beside them.

    In float32, and rounded once, at the end::

        scores = scale * (query @ key.T + query_rope @ key_rope.T) + pse_shift
        out    = sum(exp(scores - max) * value) / sum(exp(scores - max))     over the keys seen

    A query that sees no key, and one behind the end of its sequence, gives zeros.

    Args:
        query: float16 or bfloat16, in the layout. b is the batch, s the tokens of a sequence, n
            heads, d the elements of one, h = n * d, t the tokens of all sequences.
        key: of the dtype of query, in its layout with its own s and heads; with block_table pages:
            ``(pages, page_size, h)``, ``(pages, n, page_size, d)``, or FRACTAL_NZ
            ``(pages, n, d / 16, page_size, 16)``.
        value: as key, its d may be another.
        pse_shift: ``(b or 1, n, s, s_kv)`` or larger in the last two, of the dtype of query.
        atten_mask: bool, int8 or uint8, nonzero where a key is not seen. For sparse_mode 0 and 1
            ``(s, s_kv)``, ``(b or 1, s, s_kv)``, ``(b or 1, 1, s, s_kv)`` and, with one query,
            ``(b, s_kv)``; in pages s_kv is at least the table's pages. For 2, 3 and 4 the triangle
            of 2048 rows and columns, of which only the place is read.
        actual_seq_lengths: tokens of each query sequence, one for all, or None for s; not looked
            at with one query each. In TND and NTD running totals, and required.
        actual_seq_lengths_kv: the same of keys; in pages required, and never running totals.
        dequant_scale1: not supported; None.
        quant_scale1: not supported; None.
        dequant_scale2: not supported; None.
        quant_scale2: not supported; None.
        quant_offset2: not supported; None.
        antiquant_scale: not supported; None.
        antiquant_offset: not supported; None.
        key_antiquant_scale: not supported; None.
        key_antiquant_offset: not supported; None.
        value_antiquant_scale: not supported; None.
        value_antiquant_offset: not supported; None.
        block_table: ``(b, most pages)`` int32, the pages of each sequence; those behind its end may
            be any number.
        query_padding_size: not supported; None.
        kv_padding_size: not supported; None.
        key_shared_prefix: not supported; None.
        value_shared_prefix: not supported; None.
        actual_shared_prefix_len: not supported; None.
        query_rope: of the shape of query but for d, and of its dtype; both ropes or neither.
        key_rope: of the shape of key but for d.
        key_rope_antiquant_scale: not supported; None.
        num_heads: n of query.
        scale: of the scores.
        pre_tokens: how many keys behind its own place a query sees, for sparse_mode 0 with a mask,
            and 4.
        next_tokens: how many ahead of it.
        input_layout: of query, and, behind an underscore, of the result: BSH, BSND, BNSD, TND, NTD,
            BNSD_BSND, BSH_BNSD, BSND_BNSD, BSH_NBSD, BSND_NBSD, BNSD_NBSD, TND_NTD or NTD_TND.
        num_key_value_heads: n of key; 0 for that of query.
        sparse_mode: 0 the mask within the band, 1 the mask, 2 causal counted from the first key,
            3 causal counted from the last, 4 the band counted from the last. Has no effect with one
            query each and no rope.
        inner_precise: 0 to 3; all are computed alike.
        block_size: page_size with block_table; not looked at without.
        antiquant_mode: 0.
        key_antiquant_mode: 0.
        value_antiquant_mode: 0.
        softmax_lse_flag: whether the second result is computed.

    Returns:
        The result in the layout, with the d of value; and the natural logarithm of the sum of the
        exponentials, float32 ``(b, n, s, 1)`` or ``(t, n, 1)``, infinite where no key is seen, or
        ``(0,)``.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a scalar or a length is wrong, or what one argument needs is missing.
        IndexError: a page does not exist.
        NotImplementedError: an argument, or a combination, that is not supported.

    Source: torch_npu's interface document and torch_npu's Meta function for shapes. The device
    rounds the weights to the dtype of query before the second product; here they stay float32. That
    the logarithm is infinite where no key is seen is inferred.
    """
    refused = {
        "dequant_scale1": dequant_scale1,
        "quant_scale1": quant_scale1,
        "dequant_scale2": dequant_scale2,
        "quant_scale2": quant_scale2,
        "quant_offset2": quant_offset2,
        "antiquant_scale": antiquant_scale,
        "antiquant_offset": antiquant_offset,
        "key_antiquant_scale": key_antiquant_scale,
        "key_antiquant_offset": key_antiquant_offset,
        "value_antiquant_scale": value_antiquant_scale,
        "value_antiquant_offset": value_antiquant_offset,
        "query_padding_size": query_padding_size,
        "kv_padding_size": kv_padding_size,
        "key_shared_prefix": key_shared_prefix,
        "value_shared_prefix": value_shared_prefix,
        "actual_shared_prefix_len": actual_shared_prefix_len,
        "key_rope_antiquant_scale": key_rope_antiquant_scale,
    }
    for name, value_ in refused.items():
        must_be_none(name, value_, _SUPPORTED)
    modes = {
        "antiquant_mode": antiquant_mode,
        "key_antiquant_mode": key_antiquant_mode,
        "value_antiquant_mode": value_antiquant_mode,
    }
    for name, mode in modes.items():
        if mode != 0:
            raise NotImplementedError(f"{name} must be 0, got {mode}; {_SUPPORTED}")
    check_choice("inner_precise", inner_precise, dict.fromkeys(range(4), ""))
    check_choice("input_layout", input_layout, dict.fromkeys(_LAYOUTS, ""))
    check_choice("sparse_mode", sparse_mode, _SPARSE)
    require(ValueError, num_heads >= 1, lambda: f"num_heads must be >= 1, got {num_heads}")
    kv_heads = num_key_value_heads or num_heads
    require(
        ValueError,
        kv_heads >= 1 and num_heads % kv_heads == 0,
        lambda: (
            f"num_key_value_heads must be 0 or divide num_heads = {num_heads}, "
            f"got {num_key_value_heads}"
        ),
    )
    layout, out_layout = _LAYOUTS[input_layout]
    call = Attention(
        query=query,
        key=key,
        value=value,
        query_rope=query_rope,
        key_rope=key_rope,
        pse=pse_shift,
        mask=atten_mask,
        lengths=actual_seq_lengths,
        kv_lengths=actual_seq_lengths_kv,
        table=block_table,
        sink=None,
        heads=num_heads,
        kv_heads=kv_heads,
        scale=scale,
        before=pre_tokens,
        after=next_tokens,
        layout=layout,
        out_layout=out_layout,
        sparse_mode=sparse_mode,
        gives_lse=softmax_lse_flag,
    )
    attention_checks.check_tensors(call, block_size)
    attention_checks.check_lengths(call)
    attention_checks.check_mask(call)
    attention_checks.check_pse(call)
    return call


def cpu(call: Attention) -> tuple[Tensor, Tensor]:
    """The results, after a look at lengths and pages."""
    attention_checks.look_at_values(call)
    return attention.run(call)


# Inputs of the node that no call of the operator above can have given.
_FOREIGN = ("dequant_scale_query", "learnable_sink", "q_start_idx", "kv_start_idx")
_OPTIONAL = (
    "pse_shift",
    "atten_mask",
    "dequant_scale1",
    "quant_scale1",
    "dequant_scale2",
    "quant_scale2",
    "quant_offset2",
    "antiquant_scale",
    "antiquant_offset",
    "key_antiquant_scale",
    "key_antiquant_offset",
    "value_antiquant_scale",
    "value_antiquant_offset",
    "block_table",
    "query_padding_size",
    "kv_padding_size",
    "key_shared_prefix",
    "value_shared_prefix",
    "query_rope",
    "key_rope",
    "key_rope_antiquant_scale",
)
_LISTS = ("actual_seq_lengths", "actual_seq_lengths_kv", "actual_shared_prefix_len")
_INTS = {
    "pre_tokens": attention.UNLIMITED,
    "next_tokens": attention.UNLIMITED,
    "num_key_value_heads": 0,
    "sparse_mode": 0,
    "inner_precise": 0,
    "block_size": 0,
    "antiquant_mode": 0,
    "key_antiquant_mode": 0,
    "value_antiquant_mode": 0,
}


def _arguments(node: NodeCall) -> dict[str, Any]:
    for name in _FOREIGN:
        must_be_none(name, node.get(name), _SUPPORTED)
    (key,), (value,) = node.dynamic("key"), node.dynamic("value")
    return {
        "query": node["query"],
        "key": key,
        "value": value,
        **{name: node.get(name) for name in _OPTIONAL},
        **{name: None if node.get(name) is None else node.ints(name) for name in _LISTS},
        **{name: int(node.attr(name, default)) for name, default in _INTS.items()},
        "num_heads": int(node.attr("num_heads")),
        "scale": float(node.attr("scale", 1.0)),
        "input_layout": str(node.attr("input_layout", "BSH")),
        "softmax_lse_flag": bool(node.attr("softmax_lse_flag", False)),
    }


OPERATOR = Operator(
    name="npu_fused_infer_attention_score",
    check=check,
    returns="(Tensor, Tensor)",
    fake=attention.fake,
    cpu=cpu,
    portable=cpu,
    nodes=(GENode("FusedInferAttentionScore", _arguments),),
    summary="attention for inference, over keys and values in pages or not",
    unsupported="quantised tensors and every scale and offset; padding on the left; a shared "
    "prefix; layout NSD; a full mask and pse_shift in TND and NTD",
    exactness="float32, rounded once to the dtype of query",
    source="torch_npu's interface document; torch_npu's Meta function for shapes",
)
