"""The operators of this package, one file or folder each."""

from __future__ import annotations

from typing import Any, Callable

from npu_lowering.operators import (
    add_rms_norm_quant,
    dequant_swiglu_quant,
    dynamic_quant,
    format_cast,
    fused_infer_attention_score,
    grouped_matmul,
    grouped_matmul_finalize_routing,
    grouped_matmul_swiglu_quant,
    kv_rmsnorm_rope_cache,
    moe_finalize_routing,
    moe_gating_top_k,
    moe_gating_top_k_softmax,
    moe_init_routing,
    moe_init_routing_quant,
    moe_init_routing_v2,
    moe_re_routing,
    moe_token_permute,
    quant_matmul,
    rms_norm,
    rope,
    scatter,
    scatter_pa_kv_cache,
    swiglu,
    top_k_top_p,
)
from npu_lowering.operators.operator import Operator

OPERATORS: tuple[Operator, ...] = (
    grouped_matmul_finalize_routing.OPERATOR,
    grouped_matmul_finalize_routing.TRACED,
    format_cast.OPERATOR,
    format_cast.LIKE,
    dequant_swiglu_quant.OPERATOR,
    dynamic_quant.OPERATOR,
    grouped_matmul.OPERATOR,
    fused_infer_attention_score.OPERATOR,
    kv_rmsnorm_rope_cache.OPERATOR,
    grouped_matmul.LIST,
    grouped_matmul_swiglu_quant.OPERATOR,
    grouped_matmul_swiglu_quant.V2,
    moe_finalize_routing.OPERATOR,
    moe_gating_top_k.OPERATOR,
    moe_gating_top_k_softmax.OPERATOR,
    moe_gating_top_k_softmax.V2,
    moe_init_routing.OPERATOR,
    moe_init_routing.EXPERT_TOKENS,
    moe_init_routing_quant.OPERATOR,
    moe_init_routing_v2.OPERATOR,
    moe_re_routing.OPERATOR,
    moe_token_permute.OPERATOR,
    moe_token_permute.UNPERMUTE,
    quant_matmul.OPERATOR,
    rms_norm.OPERATOR,
    rms_norm.ADD,
    rms_norm.BACKWARD,
    add_rms_norm_quant.CAST,
    add_rms_norm_quant.DYNAMIC,
    add_rms_norm_quant.QUANT,
    rope.MUL,
    rope.INTERLEAVED,
    rope.APPLY,
    scatter.ND,
    scatter.ND_IN_PLACE,
    scatter.UPDATE,
    scatter.UPDATE_IN_PLACE,
    scatter_pa_kv_cache.OPERATOR,
    swiglu.OPERATOR,
    top_k_top_p.OPERATOR,
    swiglu.BACKWARD,
)
"""Every operator; whatever goes over operators goes over this."""

BY_NAME = {operator.name: operator for operator in OPERATORS}
"""The same, by name."""

TRACED: dict[str, Callable[..., Any]] = {
    grouped_matmul_finalize_routing.NAME: (
        grouped_matmul_finalize_routing.npu_grouped_matmul_finalize_routing
    ),
}
"""Public functions that call another operator than their namesake while sizes are traced."""
