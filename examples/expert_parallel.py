"""Expert parallelism: experts split over ranks, tokens gathered, results added up and scattered.

    torchrun --nproc-per-node 2 examples/expert_parallel.py

With gloo on CPU, and with hccl where there are NPUs. Each rank has its own tokens and its own
experts. It gathers all tokens, routes them to its experts (rows of others become tail rows, which
the operator does not read), and puts its shared expert's output where its own tokens lie; what all
ranks have of a token is added up on the rank that owns it. Where torch_npu is installed and CANN is
not, set TORCH_DEVICE_BACKEND_AUTOLOAD=0, or torchrun itself cannot import torch.
"""

import argparse

import npu_lowering  # isort: skip -- before torch, which cannot be imported where CANN is missing

import torch
import torch.distributed as dist


def whole_problem(tokens, experts, top_k, k, n):
    """What one device without parallelism would compute; every rank makes the same."""
    made = torch.Generator().manual_seed(0)
    weights, ids = torch.rand(tokens, experts, generator=made).topk(top_k)
    return {
        "x": torch.randint(-128, 128, (tokens, k), generator=made, dtype=torch.int8),
        "x_scale": torch.rand(tokens, generator=made) * 0.01,
        "w": torch.randint(-128, 128, (experts, k, n), generator=made, dtype=torch.int8),
        "w_scale": torch.rand(experts, n, generator=made) * 0.01,
        "ids": ids,
        "weights": weights / weights.sum(1, keepdim=True),
        "shared": torch.randn(tokens, n, generator=made).bfloat16(),
    }


def arguments(p, experts, shared, first):
    """The operator's call for a range of experts, and shared_input from row first on."""
    r = npu_lowering.routing(p["ids"], p["weights"], p["experts"], expert_range=experts)
    return {
        "x": p["x"][r.row_index],
        "w": p["w"],
        "group_list": r.group_list,
        "scale": p["w_scale"],
        "pertoken_scale": p["x_scale"][r.row_index],
        "logit": r.logit,
        "row_index": r.row_index,
        "shared_input": shared,
        "shared_input_offset": first,
        "output_bs": p["ids"].shape[0],
    }


def gathered(tensor, world):
    """The tensors of all ranks, one below the other."""
    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def parallel(whole, experts, device):
    """This rank's tokens of the result."""
    rank, world = dist.get_rank(), dist.get_world_size()
    tokens = whole["ids"].shape[0] // world
    own = slice(rank * tokens, (rank + 1) * tokens)
    local = slice(rank * experts // world, (rank + 1) * experts // world)
    mine = {name: whole[name][own].to(device) for name in ("x", "x_scale", "ids", "weights")}
    p = {name: gathered(tensor, world) for name, tensor in mine.items()}
    p.update(w=whole["w"][local].to(device), w_scale=whole["w_scale"][local].to(device))
    p["experts"] = experts
    call = arguments(p, (local.start, local.stop), whole["shared"][own].to(device), rank * tokens)
    partial = npu_lowering.npu_grouped_matmul_finalize_routing(**call)
    result = torch.empty_like(partial[own])
    dist.reduce_scatter(result, list(partial.chunk(world)))
    return result


def same_order(ids, experts, world):
    """Tokens whose terms are added up in the order of one device.

    The owner starts from the shared expert and adds the terms of its own experts. What another rank
    has of the token is added to that, so it may be one term, of an expert after those of the owner.
    """
    owner = (torch.arange(len(ids)) // (len(ids) // world)).unsqueeze(1)
    ends = torch.tensor([(rank + 1) * experts // world for rank in range(world)])
    rank = torch.searchsorted(ends, ids, right=True)
    return (rank >= owner).all(1) & ((rank > owner).sum(1) <= 1)


def main():
    """Compute in parallel, gather, and compare with one device on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64, help="of each rank")
    parser.add_argument("--experts", type=int, default=16, help="of all ranks")
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--inner", type=int, default=256)
    parser.add_argument("--outer", type=int, default=512)
    options = parser.parse_args()
    npu = hasattr(torch, "npu") and torch.npu.is_available()
    dist.init_process_group("hccl" if npu else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = f"npu:{rank}" if npu else "cpu"
    if npu:
        torch.npu.set_device(device)
    sizes = options.experts, options.top_k, options.inner, options.outer
    whole = whole_problem(options.tokens * world, *sizes)
    result = gathered(parallel(whole, options.experts, device), world).cpu()
    if rank == 0:
        whole["experts"] = options.experts
        call = arguments(whole, None, whole["shared"], 0)
        # The terms are the same ones; only the order in which float32 adds them is another. So each
        # element lies within (terms - 1) * 2**-24 * sum(|term|) of their exact sum.
        report = npu_lowering.compare(result, **call)
        one = npu_lowering.npu_grouped_matmul_finalize_routing(**call)
        same = same_order(whole["ids"], options.experts, world)
        equal = torch.equal(result[same], one[same])
        print(f"{world} ranks, {options.tokens * world} tokens, {options.experts} experts")
        print(report)
        print(f"{int(same.sum())} tokens with one order of adds, equal bit for bit: {equal}")
        assert equal
        assert report.explained_by_order
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
