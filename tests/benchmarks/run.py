"""Times the CPU path against its peers and the limits of the processor.

    python tests/benchmarks/run.py [--peer zentorch] [--quick] [--output FOLDER]

Everything in a row of the table runs interleaved in one process of its own, warm; the results are
checked against each other and, for the small ones, against the oracle. Weights are held in each
layout of layouts.py; zentorch is handed k-contiguous ones and packs them for itself. Needs the
extra ``bench`` for the pictures and the peer. Writes results.md, results.json and two PNG files.
"""

import argparse
import functools
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import npu_lowering  # isort: skip -- where torch_npu is installed without CANN, torch needs it

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import layouts  # noqa: E402
import limits  # noqa: E402
from oracle import oracle  # noqa: E402

from npu_lowering.operators.grouped_matmul_finalize_routing import native  # noqa: E402

# experts, k, n, tokens, experts a token goes to.
ROWS = (
    (8, 2048, 7168, 72, 8),
    (8, 2048, 7168, 8, 8),
    (8, 2048, 7168, 1, 8),
    (8, 2048, 7168, 768, 8),
    (32, 768, 2048, 256, 8),
    (32, 768, 2048, 16, 8),
    (64, 2048, 7168, 16, 8),
    (16, 1408, 2048, 40, 6),
    (128, 512, 4096, 32, 8),
)
# Curves: what grows, over its values.
CURVES = {
    "tokens": tuple((8, 768, 2048, 1 << i, 8) for i in range(13)),
    "experts": tuple((1 << i, 768, 2048, 16, 8) for i in range(3, 9)),
    "k": tuple((16, 1 << i, 2048, 16, 8) for i in range(6, 13)),
    "n": tuple((16, 1024, 1 << i, 16, 8) for i in range(6, 14)),
}
# Shapes at which the odd layouts, and the path without VNNI, are measured.
ODD_ROWS = ((8, 2048, 7168, 8, 8), (32, 768, 2048, 256, 8))
# Rows of each group, over the groups: skewed ones and even ones that multiply, or read, as much.
SKEWED = {
    "one expert has all rows": ((2048, 7168, [576] + [0] * 7), (2048, 7168, [72] * 8)),
    "256 experts with one row": ((512, 2048, [1] * 256), (2048, 8192, [1] * 16)),
}


def call(experts, k, n, tokens, top_k):
    """Random inputs; each token goes to top_k experts, or to all there are."""
    generator = torch.Generator().manual_seed(0)
    top_k = min(top_k, experts)
    scores = torch.rand(tokens, experts, generator=generator)
    weights, ids = scores.topk(top_k)
    routed = npu_lowering.routing(ids, weights, num_experts=experts)
    m = tokens * top_k

    def integers(*shape):
        return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)

    return {
        "x": integers(m, k),
        "w": integers(experts, k, n),
        "group_list": routed.group_list,
        "scale": torch.rand(experts, n, generator=generator) * 1e-3,
        "pertoken_scale": torch.rand(m, generator=generator) * 1e-2,
        "logit": routed.logit,
        "row_index": routed.row_index,
        "output_bs": tokens,
    }


def int_mm_loop(case):
    """The operator in standard torch ops, as one would write it."""
    out = torch.zeros(case["output_bs"], case["scale"].shape[1])
    start = 0
    for g, count in enumerate(case["group_list"].tolist()):
        rows = slice(start, start + count)
        if count:
            y = torch._int_mm(case["x"][rows], case["w"][g]) * case["scale"][g]
            y *= (case["pertoken_scale"][rows] * case["logit"][rows]).unsqueeze(1)
            out.index_add_(0, case["row_index"][rows], y)
        start += count
    return out


def zentorch(case):
    """The same by zentorch: a function, and the tensor that it fills. It keeps packed weights."""
    import zentorch  # noqa: F401

    tokens, (m, n) = case["output_bs"], (case["x"].shape[0], case["scale"].shape[1])
    rows, out = torch.zeros(m, n), torch.zeros(tokens, n)
    groups, start = [], 0
    for g, count in enumerate(case["group_list"].tolist()):
        if count:
            groups.append((g, slice(start, start + count)))
        start += count
    order = case["row_index"].argsort(stable=True).view(tokens, -1)
    arguments = (
        [rows[r] for _, r in groups],
        [case["x"][r] for _, r in groups],
        [case["w"][g].t().contiguous() for g, _ in groups],
        [],
        out,
        case["logit"][order].contiguous(),
        (rows.data_ptr() + order * n * 4).contiguous(),
        "none",
        [None] * len(groups),
        [],
        [case["scale"][g] for g, _ in groups],
        [],
        [case["pertoken_scale"][r].unsqueeze(1).contiguous() for _, r in groups],
    )

    def run():
        torch.ops.zentorch.zentorch_group_matmul.out(*arguments)
        return out

    return run


def interleaved(functions, seconds):
    """name -> (minimum, median) in milliseconds; called in turn, in any order."""
    times = {name: [] for name in functions}
    order, generator = list(functions.items()), random.Random(0)
    for function in functions.values():
        function(), function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        generator.shuffle(order)
        for name, function in order:
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: (min(t), statistics.median(t)) for name, t in times.items()}


def one_row(sizes, peers, names, seconds, threads):
    """Measures one problem; runs in a process of its own."""
    torch.set_num_threads(threads)
    operator = npu_lowering.npu_grouped_matmul_finalize_routing
    case = call(*sizes)
    functions = {name: held(operator, case, name) for name in names}
    if "int_mm" in peers:
        functions["int_mm"] = lambda: int_mm_loop(case)
    if "zentorch" in peers:
        functions["zentorch"] = zentorch(case)
    with torch.inference_mode():
        expected = oracle(**case) if case["x"].shape[0] <= 1024 else int_mm_loop(case)
        for name, function in functions.items():
            actual = function()
            if name == "zentorch":  # adds in another order
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(actual, expected), f"{name} is wrong"
        before = limits.measure(threads)
        times = interleaved(functions, seconds)
        after = limits.measure(threads)
    _, k, n, *_ = sizes
    used = int((case["group_list"] > 0).sum())
    work = {"arithmetic": case["x"].shape[0] * k * n, "memory": used * k * n}
    for name in before:  # the machine's own speed drifts: what it could do at its best
        times[f"limit_{name}"] = (1e3 * work[name] / max(before[name], after[name]),) * 2
    return {"sizes": sizes, "threads": threads, "path": native.path(), "milliseconds": times}


def held(operator, case, layout):
    """A call with its weights held in that layout."""
    make = layouts.FAST[layout] if layout in layouts.FAST else layouts.ODD[layout][0]
    arguments = {**case, "w": make(case["w"])}
    return lambda: operator(**arguments)


def in_a_process(sizes, peers, names, seconds, threads, path="auto"):
    """A process for each set of weights: a peer's cache of packed weights goes by address."""
    print(f"{sizes} {threads} threads ...", end=" ", file=sys.stderr, flush=True)
    row = json.dumps([sizes, peers, names, seconds, threads])
    done = subprocess.run(
        [sys.executable, __file__, "--row", row],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, native.VARIABLE: path},
    )
    row = json.loads(done.stdout.splitlines()[-1])
    shown = {name: round(t[0], 2) for name, t in row["milliseconds"].items()}
    print(shown, file=sys.stderr)
    return row


def skewed(seconds):
    """name -> minimum (median) of the skewed groups and of even ones that are as much work."""
    operator = npu_lowering.npu_grouped_matmul_finalize_routing
    results = {}
    for name, groups in SKEWED.items():
        functions = {}
        for kind, (k, n, counts) in zip(("skewed", "even"), groups):
            m = sum(counts)
            arguments = {
                "x": torch.ones(m, k, dtype=torch.int8),
                "w": torch.ones(len(counts), n, k, dtype=torch.int8).transpose(1, 2),
                "group_list": torch.tensor(counts),
                "scale": torch.ones(len(counts), n),
                "row_index": torch.arange(m),
            }
            functions[kind] = functools.partial(operator, **arguments)
        with torch.inference_mode():
            results[name] = interleaved(functions, seconds)
    return results


def overhead(seconds):
    """A tiny call, against the torch ops that it stands for, and compiled.

    What torch.compile adds to any function shows in one that does next to nothing with the same
    inputs.
    """
    case = call(2, 64, 64, 4, 2)
    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing
    sizes = {name: value for name, value in case.items() if not isinstance(value, torch.Tensor)}
    tensors = {name: value for name, value in case.items() if name not in sizes}

    @torch.compile(fullgraph=True)
    def compiled(tensors):
        return operator(**tensors, **sizes)

    @torch.compile(fullgraph=True)
    def nothing(tensors):
        return torch.stack([tensor.flatten()[0].float() for tensor in tensors.values()])

    with torch.inference_mode():
        return interleaved(
            {
                "operator": lambda: operator(**case),
                "the torch ops it stands for": lambda: int_mm_loop(case),
                "operator, compiled": lambda: compiled(tensors),
                "next to nothing, compiled": lambda: nothing(tensors),
            },
            seconds,
        )


def lowering(seconds):
    """Our converter and upstream's; None where TorchAIR cannot be had."""
    if importlib.util.find_spec("torch_npu") is None:
        return None
    command = [sys.executable, str(Path(__file__).with_name("lowering.py")), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def importing():
    """Milliseconds of ``import npu_lowering`` after torch: the least of five."""
    program = (
        "import os; os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'\n"
        "import torch, time; start = time.perf_counter(); import npu_lowering\n"
        "print((time.perf_counter() - start) * 1e3)"
    )
    runs = [subprocess.check_output([sys.executable, "-c", program], text=True) for _ in range(5)]
    return min(map(float, runs))


def times(measured):
    """Minimum and median of each as a list."""
    return "".join(f"* {name}: {a:.3f} ({b:.3f})\n" for name, (a, b) in measured.items())


def table(rows):
    """The rows as Markdown: minimum (median) in milliseconds, then ratios of minima."""
    names = [name for name in names_of(rows) if not name.startswith("limit")]
    ours = [name for name in names if name in layouts.FAST]
    peer = "zentorch" if "zentorch" in names else None
    head = ["e, k, n, tokens, top k", *names, "limits: MAC, read"]
    head += [f"{name} / limit" for name in ours] + [f"{name} / zentorch" for name in ours if peer]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        t = row["milliseconds"]
        limit = larger_limit(row)
        cells = [", ".join(map(str, row["sizes"]))]
        cells += [f"{t[name][0]:.2f} ({t[name][1]:.2f})" for name in names]
        cells += [", ".join(f"{t[name][0]:.2f}" for name in t if name.startswith("limit"))]
        cells += [f"{t[name][0] / limit:.2f}" if limit else "" for name in ours]
        cells += [f"{t[name][0] / t[peer][0]:.2f}" for name in ours if peer]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def odd_table(rows):
    """Odd layouts over the fast one that is nearest, minimum (median)."""
    lines = ["| e, k, n, tokens, top k | " + " | ".join(layouts.ODD) + " |"]
    lines.append("|" + "---|" * (len(layouts.ODD) + 1))
    for row in rows:
        t = row["milliseconds"]
        ratios = [
            f"{t[name][0] / t[near][0]:.2f} ({t[name][1] / t[near][1]:.2f})"
            for name, (_, near) in layouts.ODD.items()
        ]
        lines.append("| " + " | ".join([", ".join(map(str, row["sizes"])), *ratios]) + " |")
    return "\n".join(lines)


def cliffs(rows):
    """Steps between neighbours of a curve where time grows 1.5 times as much as the work did."""
    found = []
    for before, after in zip(rows, rows[1:]):
        for name in layouts.FAST:
            if name in before["milliseconds"]:
                step = after["milliseconds"][name][0] / before["milliseconds"][name][0]
                work = larger_limit(after) / larger_limit(before) if larger_limit(before) else 2
                if step > 1.5 * max(work, 1):
                    found.append(f"{name} {before['sizes']} to {after['sizes']}: {step:.2f}")
    return "".join(f"* {line}\n" for line in found) or "none\n"


# What each is called in a picture, and its colour; limits are drawn in greys.
LOOKS = {
    "k": ("k contiguous", "tab:purple"),
    "k_cast": ("k contiguous, cast to 29", "plum"),
    "nd": ("n contiguous", "tab:blue"),
    "nd_cast": ("n contiguous, cast to 29", "lightskyblue"),
    "nz": ("5-D w (FRACTAL_NZ)", "tab:orange"),
    "int_mm": ("loop over torch._int_mm", "tab:green"),
    "zentorch": ("zentorch", "tab:red"),
    "limit_arithmetic": ("limit: VNNI arithmetic", "dimgray"),
    "limit_memory": ("limit: reading the weights", "darkgray"),
}


def pictures(rows, scaling, folder):
    """Time against tokens with the limits drawn in, and bars of ratios to the larger limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = names_of(scaling)
    figure, axes = pyplot.subplots(figsize=(8, 5))
    tokens = [row["sizes"][3] for row in scaling]
    for name in names:
        label, colour = LOOKS[name]
        style = "--" if name.startswith("limit") else "o-"
        measured = [row["milliseconds"][name][0] for row in scaling]
        axes.plot(tokens, measured, style, label=label, color=colour, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="tokens, 8 rows each", ylabel="milliseconds")
    axes.set_xticks(tokens, [str(count) for count in tokens], rotation=45)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    e, k, n, *_ = scaling[0]["sizes"]
    axes.set_title(f"{e} experts, k = {k}, n = {n}, {scaling[0]['threads']} threads")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(folder / "tokens.png", dpi=120, bbox_inches="tight")

    names = [name for name in names_of(rows) if not name.startswith("limit")]
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for i, name in enumerate(names):
        label, colour = LOOKS[name]
        ratios = [row["milliseconds"][name][0] / larger_limit(row) for row in rows]
        width = 0.8 / len(names)
        places = [j + (i - len(names) / 2) * width for j in range(len(rows))]
        axes.bar(places, ratios, 0.95 * width, label=label, color=colour, align="edge")
    axes.axhline(1, color="black", linewidth=1)
    labels = [", ".join(map(str, row["sizes"])) for row in rows]
    axes.set_xticks(range(len(rows)), labels, rotation=25, ha="right")
    axes.set(xlabel="experts, k, n, tokens, top k", ylabel="time / the larger of the two limits")
    axes.legend()
    figure.savefig(folder / "ratios.png", dpi=120, bbox_inches="tight")


def names_of(rows):
    """What was measured in every row, in the order of the pictures."""
    return [name for name in LOOKS if name in rows[0]["milliseconds"]]


def larger_limit(row):
    """The larger of a row's limits in milliseconds; 0 where none was measured."""
    return max(
        (t[0] for name, t in row["milliseconds"].items() if name.startswith("limit")), default=0
    )


def main():
    """Runs everything and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer", action="append", default=[], help="zentorch; may be repeated")
    parser.add_argument("--quick", action="store_true", help="less time a row, and no curves")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder to write to")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        sizes, peers, names, seconds, threads = json.loads(options.row)
        print(json.dumps(one_row(tuple(sizes), peers, names, seconds, threads)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    seconds, threads = (4 if options.quick else 10), torch.get_num_threads()
    fast, odd = list(layouts.FAST), list(layouts.ODD)
    results = {
        "rows": [in_a_process(s, options.peer, fast, seconds, threads) for s in ROWS],
        "odd": [in_a_process(s, [], [*fast, *odd], seconds, threads) for s in ODD_ROWS],
        "skewed": skewed(seconds / 2),
        "overhead": overhead(1),
        "import": importing(),
        "lowering": lowering(seconds),
    }
    text = table(results["rows"])
    text += "\n\nOdd layouts over the fast one that is nearest\n\n" + odd_table(results["odd"])
    if "avx2" in native.PATHS and native.path() in ("avx512vnni", "avxvnni"):
        results["avx2"] = [
            in_a_process(s, [], ["k", "nd", "nz"], 2, threads, "avx2") for s in ROWS[:2]
        ]
        text += "\n\nThe path without VNNI\n\n" + table(results["avx2"])
    text += "\n\nSkewed groups, milliseconds: minimum (median)\n\n"
    for name, measured in results["skewed"].items():
        ratio = measured["skewed"][0] / measured["even"][0]
        text += f"{name}, {ratio:.2f} of even ones\n\n{times(measured)}\n"
    text += "\nTiny call, milliseconds: minimum (median)\n\n"
    text += times(results["overhead"])
    text += f"\nimport npu_lowering after torch: {results['import']:.1f} ms\n"
    if results["lowering"]:
        text += "\nLowering, milliseconds: minimum (median)\n\n" + times(results["lowering"])
    if not options.quick:
        for name, curve in CURVES.items():
            results[name] = [
                in_a_process(s, ["int_mm"], ["k", "nd", "nz"], 1, threads) for s in curve
            ]
            text += f"\n{name}\n\n{table(results[name])}\n\ncliffs: {cliffs(results[name])}"
        results["one thread"] = [in_a_process(s, options.peer, fast, 2, 1) for s in ROWS]
        text += f"\none thread\n\n{table(results['one thread'])}\n"
        if larger_limit(results["rows"][0]):
            pictures(results["rows"], results["tokens"], options.output)
    (options.output / "results.json").write_text(json.dumps(results, indent=1))
    (options.output / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
