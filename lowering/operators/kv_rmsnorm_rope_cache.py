"""npu_kv_rmsnorm_rope_cache: what latent attention keeps of a token, into its caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators import caches
from npu_lowering.operators.checking import (
    Size,
    check_choice,
    check_devices,
    check_dtype,
    check_indices,
    check_rank,
    check_shape,
    must_be_none,
    require,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.rope import interleaved

NORM = "Norm"
_MODES: dict[object, str] = {
    NORM: "an offset in the batch for each token",
    "PA": "a slot for each token",
    "PA_BNSD": "the same",
    "PA_NZ": "a slot for each token, pages in FRACTAL_NZ",
    "PA_BLK_BNSD": "a slot for each page of tokens",
    "PA_BLK_NZ": "a slot for each page of tokens, pages in FRACTAL_NZ",
}


@dataclass(frozen=True)
class KvRmsNormRopeCache:
    """A checked call.

    Attributes:
        kv: ``(b, 1, s, d)``.
        gamma: the factor of the normalisation.
        cos: ``(b, 1, s, rope)``.
        sin: the same.
        index: where tokens go, as the mode says.
        k_cache: written.
        ckv_cache: written.
        scales: of int8 caches, for k_cache and ckv_cache, or None.
        v: ``(b, 1, s, width)``, what ckv_cache takes, or None.
        epsilon: what is added to the mean square.
        mode: the cache_mode.
        gives_rows: whether the rows are given out as well.
    """

    kv: Tensor
    gamma: Tensor
    cos: Tensor
    sin: Tensor
    index: Tensor
    k_cache: Tensor
    ckv_cache: Tensor
    scales: tuple[Tensor, Tensor] | None
    v: Tensor | None
    epsilon: float
    mode: str
    gives_rows: bool

    @property
    def widths(self) -> tuple[Size, Size]:
        """Of the rows that k_cache and ckv_cache take."""
        if self.v is None:
            return self.cos.shape[3], self.gamma.shape[0]
        return self.kv.shape[3], self.v.shape[3]


def check(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = NORM,
    is_output_kv: bool = False,
) -> KvRmsNormRopeCache:
    """Normalise one part of kv, embed positions in the other, and write both to their caches.

    In float32 and in this order, each row rounded once, at the end::

        c, k = kv[..., :rms], kv[..., rms:]
        y = c / sqrt(mean(c ** 2) + epsilon) * gamma      to ckv_cache
        k = the embedding of npu_interleave_rope          to k_cache

    With v, all of kv is normalised, the first rope elements of the result are embedded, and that
    goes to k_cache; v goes to ckv_cache as it is.

    Eagerly and in a graph the caches are written in place, though the schema does not say so; the
    first two results are copies of them, as it promises.

    Args:
        kv: ``(b, 1, s, rms + rope)`` float16 or bfloat16; on a device rms is 512 and rope 64.
        gamma: ``(rms,)`` of the dtype of kv; with v, of all of kv's last axis.
        cos: ``(b, 1, s, rope)`` of the dtype of kv, rope even.
        sin: of the shape and dtype of cos.
        index: int64. ``(b, s)`` for cache_mode Norm, offsets in the batch; ``(b * s,)`` for PA,
            PA_BNSD and PA_NZ, slots; ``(b * ceil(s / page_size),)`` for PA_BLK_BNSD and PA_BLK_NZ,
            the first slot of each page. What is negative is not written. Two tokens for one place
            leave either of them there.
        k_cache: ``(b, 1, length, rope)`` for Norm, ``(pages, page_size, 1, rope)`` otherwise, of
            the dtype of kv, or int8 with the scales. In the NZ modes a page's memory is
            ``(rope / c0, page_size, c0)``, c0 being 16, 32 for int8. Written.
        ckv_cache: the same of rms in place of rope. Written.
        k_rope_scale: ``(rope,)`` float32, for int8 caches:
            ``round(k * k_rope_scale)``, half to even, held to [-128, 127].
        c_kv_scale: ``(rms,)`` float32, for ckv_cache; both scales or neither.
        k_rope_offset: not supported; None.
        c_kv_offset: not supported; None.
        v: ``(b, 1, s, width)`` of the dtype of kv, or None; see above.
        epsilon: keeps the root from zero.
        cache_mode: see index.
        is_output_kv: whether the last two results are computed; zeros otherwise.

    Returns:
        k_cache and ckv_cache, k ``(b, 1, s, rope)`` and y ``(b, 1, s, rms)`` of the dtype of kv.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, the mode, or one scale without the other.
        IndexError: index points beyond a cache.
        NotImplementedError: an offset is given.

    Source: torch_npu's interface document and op-plugin's golden; CANN's KvRmsNormRopeCache kernel
    for the order and the place of the rounding. That int8 is made of rows that are not rounded
    before is the golden's.
    """
    for name, offset in (("k_rope_offset", k_rope_offset), ("c_kv_offset", c_kv_offset)):
        must_be_none(name, offset, "supported is symmetric quantisation")
    check_choice("cache_mode", cache_mode, _MODES)
    check_dtype("kv", kv, torch.float16, torch.bfloat16)
    check_rank("kv", kv, 4, "(b, 1, s, d)")
    b, _, s, d = kv.shape
    check_shape("kv", kv, "(b, 1, s, d)", (b, 1, s, d))
    for name, tensor in (("gamma", gamma), ("cos", cos), ("sin", sin), ("v", v)):
        if tensor is not None:
            check_dtype(name, tensor, kv.dtype)
    check_rank("gamma", gamma, 1, "(rms,)")
    check_rank("cos", cos, 4, "(b, 1, s, rope)")
    rope = cos.shape[3]
    check_shape("cos", cos, "(b, 1, s, rope)", (b, 1, s, rope))
    check_shape("sin", sin, "of the shape of cos", cos.shape)
    require(ValueError, rope % 2 == 0, lambda: f"cos must be even in its last axis, got {rope}")
    if v is None:
        check_shape("kv", kv, "(b, 1, s, rms + rope)", (b, 1, s, gamma.shape[0] + rope))
    else:
        check_rank("v", v, 4, "(b, 1, s, width)")
        check_shape("v", v, "(b, 1, s, width)", (b, 1, s, v.shape[3]))
        check_shape("gamma", gamma, "(d,), with v,", (d,))
        require(
            ValueError,
            rope <= d,
            lambda: f"cos must have at most the {d} elements of kv in its last axis, got {rope}",
        )
    scales = _scales(k_rope_scale, c_kv_scale)
    call = KvRmsNormRopeCache(
        kv=kv,
        gamma=gamma,
        cos=cos,
        sin=sin,
        index=index,
        k_cache=k_cache,
        ckv_cache=ckv_cache,
        scales=scales,
        v=v,
        epsilon=epsilon,
        mode=cache_mode,
        gives_rows=is_output_kv,
    )
    _check_caches(call)
    tensors = {
        "kv": kv,
        "gamma": gamma,
        "cos": cos,
        "sin": sin,
        "index": index,
        "k_cache": k_cache,
        "ckv_cache": ckv_cache,
        "k_rope_scale": k_rope_scale,
        "c_kv_scale": c_kv_scale,
        "v": v,
    }
    check_devices("kv", tensors)
    return call


def _scales(k_rope: Tensor | None, c_kv: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if k_rope is None and c_kv is None:
        return None
    if k_rope is None or c_kv is None:
        missing, given = (
            ("k_rope_scale", "c_kv_scale") if k_rope is None else ("c_kv_scale", "k_rope_scale")
        )
        raise ValueError(f"{missing} is required with {given}: expected both or neither, got None")
    return k_rope, c_kv


def _check_caches(call: KvRmsNormRopeCache) -> None:
    b, _, s, _ = call.kv.shape
    check_dtype("index", call.index, torch.int64)
    names = ("k_cache", "ckv_cache")
    rows: Size | None = None
    for place, (name, cache, width) in enumerate(
        zip(names, (call.k_cache, call.ckv_cache), call.widths)
    ):
        if call.scales is None:
            check_dtype(name, cache, call.kv.dtype)
        else:
            check_dtype(name, cache, torch.int8)
            scale_name = ("k_rope_scale", "c_kv_scale")[place]
            check_dtype(scale_name, call.scales[place], torch.float32)
            check_shape(scale_name, call.scales[place], "of the row's width", (width,))
        if call.mode == NORM:
            check_rank(name, cache, 4, f"(b, 1, length, {width})")
            rows = cache.shape[2] if rows is None else rows
            check_shape(name, cache, "(b, 1, length, width)", (b, 1, rows, width))
            continue
        check_rank(name, cache, 4, f"(pages, page_size, 1, {width})")
        pages, size = call.k_cache.shape[:2]
        check_shape(name, cache, "(pages, page_size, 1, width)", (pages, size, 1, width))
        _check_pages(name, call.mode, cache)
    if call.mode == NORM:
        check_shape("index", call.index, "(b, s)", (b, s))
    elif "BLK" in call.mode:
        size = call.k_cache.shape[1]
        blocks = (s + size - 1) // size
        check_shape("index", call.index, "(b * ceil(s / page_size),)", (b * blocks,))
    else:
        check_shape("index", call.index, "(b * s,)", (b * s,))


def _check_pages(name: str, mode: str, cache: Tensor) -> None:
    size, width, c0 = cache.shape[1], cache.shape[3], caches.tile(cache.dtype)
    require(ValueError, size > 0, lambda: f"{name} must have a page_size of at least 1, got {size}")
    require(
        ValueError,
        not mode.endswith("NZ") or width % c0 == 0,
        lambda: (
            f"{name} must have a multiple of {c0} in its last axis for cache_mode {mode}, "
            f"got {width}"
        ),
    )


def fake(call: KvRmsNormRopeCache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results without their values."""
    k_width, width = call.widths
    lead = call.kv.shape[:3]
    return (
        torch.empty_like(call.k_cache, memory_format=torch.contiguous_format),
        torch.empty_like(call.ckv_cache, memory_format=torch.contiguous_format),
        call.kv.new_empty((*lead, k_width)),
        call.kv.new_empty((*lead, width)),
    )


def cpu(call: KvRmsNormRopeCache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results, and the caches written, on any device."""
    slots = _slots(call)
    k, y = _rows(call)
    layout = caches.FRACTAL_NZ if call.mode.endswith("NZ") else caches.ND
    for place, (cache, wide) in enumerate(((call.k_cache, k), (call.ckv_cache, y))):
        rows = wide.reshape(-1, 1, wide.shape[3])
        if call.scales is None:
            rows = rows.to(call.kv.dtype)
        else:
            rows = torch.round(rows * call.scales[place]).clamp(-128, 127)
        # The batches of cache_mode Norm are pages of their own.
        pages = cache.transpose(1, 2) if call.mode == NORM else cache
        caches.write_pages(pages, slots, rows, layout)
    dtype = call.kv.dtype
    given = (k.to(dtype).contiguous(), y.to(dtype).contiguous())
    if not call.gives_rows:
        given = (torch.zeros_like(given[0]), torch.zeros_like(given[1]))
    return (
        call.k_cache.clone(memory_format=torch.contiguous_format),
        call.ckv_cache.clone(memory_format=torch.contiguous_format),
        *given,
    )


def _slots(call: KvRmsNormRopeCache) -> Tensor:
    """Where each token goes in the caches, counted over all pages; negative for nowhere."""
    b, _, s, _ = call.kv.shape
    index = call.index
    if call.mode == NORM:
        length = call.k_cache.shape[2]
        check_indices("index", index, None, length)
        batch = torch.arange(b, device=index.device).unsqueeze(1) * length
        return torch.where(index < 0, -1, index + batch).reshape(-1)
    size = call.k_cache.shape[1]
    check_indices("index", index, None, call.k_cache.shape[0] * size)
    if "BLK" not in call.mode:
        return index
    token = torch.arange(s, device=index.device)
    first = index.reshape(b, -1)[:, token // size]
    return torch.where(first < 0, -1, first // size * size + token % size).reshape(-1)


def _rows(call: KvRmsNormRopeCache) -> tuple[Tensor, Tensor]:
    """What goes to k_cache and to ckv_cache, float32, not rounded yet."""
    rms, rope = call.gamma.shape[0], call.cos.shape[3]
    wide = call.kv[..., :rms].float()
    mean = wide.pow(2).mean(-1, keepdim=True)
    y = wide / torch.sqrt(mean + call.epsilon) * call.gamma.float()
    if call.v is None:
        return interleaved(call.kv[..., rms:], call.cos, call.sin), y
    k = interleaved(y[..., :rope], call.cos, call.sin)
    return torch.cat((k, y[..., rope:]), -1), call.v.float()


def _limits(call: KvRmsNormRopeCache) -> list[str]:
    found = []
    rms, rope = call.gamma.shape[0], call.cos.shape[3]
    if call.v is None and (rms, rope) != (512, 64):
        found.append(f"kv must have 512 + 64 elements in its last axis, got {rms} + {rope}")
    return found


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "kv": node["kv"],
        "gamma": node["gamma"],
        "cos": node["cos"],
        "sin": node["sin"],
        "index": node["index"],
        "k_cache": node.writable("k_cache"),
        "ckv_cache": node.writable("ckv_cache"),
        "k_rope_scale": node.get("k_rope_scale"),
        "c_kv_scale": node.get("c_kv_scale"),
        "k_rope_offset": node.get("k_rope_offset"),
        "c_kv_offset": node.get("c_kv_offset"),
        "v": node.get("v"),
        "epsilon": float(node.attr("epsilon", 1e-5)),
        "cache_mode": str(node.attr("cache_mode", NORM)),
        "is_output_kv": bool(node.attr("is_output_kv", False)),
    }


OPERATOR = Operator(
    name="npu_kv_rmsnorm_rope_cache",
    check=check,
    returns="(Tensor, Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=cpu,
    portable=cpu,
    nodes=(GENode("KvRmsNormRopeCache", _arguments, in_place=True),),
    limits=_limits,
    writes=("k_cache", "ckv_cache"),
    summary="normalised and embedded rows of latent attention, written to their caches",
    unsupported="k_rope_offset; c_kv_offset",
    exactness="float32, rounded once to the dtype of the cache",
    source="torch_npu's interface document, op-plugin's golden; CANN's KvRmsNormRopeCache kernel",
)
