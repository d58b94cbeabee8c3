"""Varied calls for as long as asked, and the memory that the process holds meanwhile.

    python tests/soak.py [--minutes 60]

Legal and illegal calls of every kind and size: eager, fake, decomposed, differentiated, compared,
and routed. Prints what the process holds as it goes; that grew if the least of the last third is
more than the least of the second one, so that caches have a third of the time to fill.

Then compilations, and, where TorchAIR works, lowerings by it. Dynamo itself keeps something of
each, so they are held to what a program of plain torch with the same inputs leaves.

Exits with 1 if either grew.
"""

import argparse
import ctypes
import gc
import logging
import os
import random
import sys
import time
import warnings
from pathlib import Path

from npu_lowering import offdevice

try:
    offdevice.install()
except offdevice.OffDeviceError as error:
    print(f"nothing is lowered: {error}", file=sys.stderr)

import torch
from cases import call
from oracle import oracle

import npu_lowering

GROWTH = 32 << 20  # bytes that count as noise of the allocator
ERRORS = (ValueError, TypeError, IndexError, NotImplementedError, RuntimeError)
OP = torch.ops.npu.npu_grouped_matmul_finalize_routing


def vary(rng, largest=2048):
    """A legal call of random sizes and options."""
    counts = [rng.choice((0, 1, 2, rng.randrange(40))) for _ in range(rng.randint(1, 16))]
    tail = rng.choice((0, 0, rng.randrange(1, 9))) or int(not sum(counts))
    m = sum(counts) + tail
    case = call(
        m=m,
        k=rng.randint(1, largest // 4),
        n=32 * rng.randint(1, largest // 32),
        counts=counts,
        output_bs=rng.randint(3, m) if m > 3 else 0,
        shared_rows=rng.choice((0, 1)) if m > 3 else 0,
        seed=rng.randrange(1 << 30),
        bias=rng.choice((None, torch.bfloat16)),
    )
    if rng.random() < 0.3:
        case["w"] = npu_lowering.to_fractal_nz(case["w"])
    if rng.random() < 0.3:
        case |= {"group_list": case["group_list"].cumsum(0), "group_list_type": 0}
    return case


def eager(rng):
    """Right, too: a leak may be memory that is written to after it was given back."""
    case = vary(rng)
    out = OP(**case)
    if case["x"].numel() < 1 << 12:
        assert torch.equal(out, oracle(**case))


def fake(rng):
    case = vary(rng, 256)
    with torch._subclasses.FakeTensorMode() as mode:
        given = {k: mode.from_tensor(v) if hasattr(v, "dim") else v for k, v in case.items()}
        OP(**given)


def decomposed(rng):
    npu_lowering.decompositions()[OP.default](**vary(rng, 512))


def differentiated(rng):
    case = vary(rng, 512)
    for name in ("scale", "logit", "pertoken_scale"):
        case[name].requires_grad_()
    OP(**case).sum().backward()


def compared(rng):
    case = vary(rng, 256)
    npu_lowering.compare(OP(**case) + rng.choice((0.0, 1.0)), **case)


def routed(rng):
    scores = torch.rand(rng.randint(1, 500), rng.randint(8, 64))
    weights, ids = scores.topk(rng.randint(1, 8))
    npu_lowering.routing(ids, weights, scores.shape[1])


def refused(rng):
    case = vary(rng, 256)
    name = rng.choice(("x", "w", "group_list", "scale", "row_index", "logit"))
    case[name] = rng.choice((case[name].double(), case[name][:0], case[name].unsqueeze(0), None))
    try:
        OP(**case)
    except ERRORS:
        return
    assert name == "logit"  # which may be missing


def compiled(function, case, backend="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(lambda: function(case), backend=backend, dynamic=False)()


def plain(rng):
    tensors = [value for value in vary(rng, 256).values() if isinstance(value, torch.Tensor)]
    compiled(lambda case: [tensor + 1 for tensor in case], tensors)


def operator(rng):
    case = vary(rng, 256)
    assert torch.equal(compiled(lambda case: OP(**case), case), OP(**case))


def lowered(rng):
    import torchair

    warnings.simplefilter("ignore")  # the configuration, too, replaces the filters
    torchair.logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    case = vary(rng, 256)
    assert torch.equal(compiled(lambda case: OP(**case), case, backend), OP(**case))


# How often each: what is slow less often.
KINDS = {eager: 10, fake: 4, decomposed: 4, differentiated: 4, compared: 2, routed: 4, refused: 8}


def held():
    """Bytes of memory, once torch and the allocator have given back what they can."""
    torch._dynamo.reset()
    torch.fx.graph_module._loader.eval_cache.clear()  # the source of every traced graph
    if hasattr(torch._subclasses.FakeTensorMode, "cache_clear"):
        torch._subclasses.FakeTensorMode.cache_clear()
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def calls_grew(rng, seconds):
    """Whether varied calls, for so long, left something behind."""
    done, memory, start = dict.fromkeys(KINDS, 0), [], time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or len(memory) < 3:
        for kind in rng.choices(list(KINDS), list(KINDS.values()), k=10):
            kind(rng)
            done[kind] += 1
        if len(memory) * seconds < 60 * passed:
            memory.append(held())
            total = f"{sum(done.values())} calls, {memory[-1] / 2**20:.0f} MiB"
            print(f"{passed / 60:.1f} min, {total}", file=sys.stderr)
    third = len(memory) // 3
    grown = min(memory[2 * third :]) - min(memory[third : 2 * third])
    each = ", ".join(f"{kind.__name__} {count}" for kind, count in done.items())
    print(f"{sum(done.values())} calls ({each}); grown by {grown / 2**20:.1f} MiB")
    return grown > GROWTH


def compilations_grew(rng, count):
    """Whether compilations left more behind than Dynamo does by itself."""
    left = {}
    for kind in (plain, operator, lowered)[: 3 if offdevice.is_installed() else 2]:
        print(f"{kind.__name__}: {count} compilations", file=sys.stderr)
        for _ in range(3):  # what happens once
            kind(rng)
        before = held()
        for _ in range(count):
            kind(rng)
        left[kind] = (held() - before) / count
    each = ", ".join(f"{kind.__name__} {size / 2**10:.1f}" for kind, size in left.items())
    print(f"{count} compilations of each; KiB left by one: {each}")
    return (max(left.values()) - left[plain]) * count > GROWTH


def main():
    """Runs, reports, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the calls (default 0)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    grew = calls_grew(rng, 60 * options.minutes)
    return int(compilations_grew(rng, 2 + int(10 * options.minutes)) or grew)


if __name__ == "__main__":
    sys.exit(main())
