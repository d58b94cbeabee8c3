"""What people do with torch every day, each in a few lines; every function gives what came out."""

# ruff: noqa: ARG001, ARG005 -- signatures are torch's

import collections
import copy
import io
import os
import pickle
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

SNIPPETS = {}


def snippet(function):
    SNIPPETS[function.__name__] = function
    return function


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def batch(rows=6):
    torch.manual_seed(1)
    return torch.randn(rows, 4), torch.randn(rows, 2)


def train(optimizer, steps=3, scheduler=None, net=None):
    net = model() if net is None else net
    x, y = batch()
    step = optimizer(net.parameters())
    schedule = scheduler(step) if scheduler else None
    losses = []
    for _ in range(steps):
        step.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        step.step()
        losses.append(loss.item())
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(loss)
        elif schedule is not None:
            schedule.step()
    return losses, [group["lr"] for group in step.param_groups], list(net.parameters())


# Training


@snippet
def sgd_with_momentum():
    return train(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True))


@snippet
def adam():
    return train(lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True))


@snippet
def adamw_foreach():
    return train(lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True))


@snippet
def adamw_fused():
    return train(lambda p: torch.optim.AdamW(p, lr=0.01, fused=True))


@snippet
def rmsprop():
    return train(lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True))


@snippet
def adagrad():
    return train(lambda p: torch.optim.Adagrad(p, lr=0.01))


@snippet
def other_optimizers():
    names = ("Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "Rprop")
    return [train(lambda p, name=name: getattr(torch.optim, name)(p)) for name in names]


@snippet
def lbfgs():
    net, (x, y) = model(), batch()
    step = torch.optim.LBFGS(net.parameters(), max_iter=4)

    def closure():
        step.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        return loss

    return step.step(closure), list(net.parameters())


@snippet
def schedulers():
    lr = torch.optim.lr_scheduler
    made = (
        lambda o: lr.StepLR(o, 2),
        lambda o: lr.CosineAnnealingLR(o, 4),
        lambda o: lr.OneCycleLR(o, max_lr=1.0, total_steps=8),
        lambda o: lr.LambdaLR(o, lambda epoch: 0.5**epoch),
        lambda o: lr.ReduceLROnPlateau(o, patience=0),
        lambda o: lr.SequentialLR(o, [lr.ConstantLR(o, 0.1), lr.ExponentialLR(o, 0.9)], [2]),
    )
    return [train(lambda p: torch.optim.SGD(p, lr=0.1), 4, schedule) for schedule in made]


@snippet
def optimizer_state():
    net, other = model(), model()
    step = torch.optim.Adam(net.parameters())
    net(batch()[0]).sum().backward()
    step.step()
    again = torch.optim.Adam(other.parameters())
    again.load_state_dict(copy.deepcopy(step.state_dict()))
    return again.state_dict()


@snippet
def clipped_gradients_and_averaged_weights():
    net = model()
    average = torch.optim.swa_utils.AveragedModel(net)
    net(batch()[0]).sum().backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    torch.optim.SGD(net.parameters(), 0.1).step()
    average.update_parameters(net)
    return norm, average.state_dict()


# Precision


@snippet
def autocast():
    net, (x, y) = model(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x)
        loss = functional.mse_loss(out.float(), y)
    loss.backward()
    return out.dtype, loss, net[0].weight.grad, torch.is_autocast_enabled("cpu")


@snippet
def amp_with_a_scaler():
    net, (x, y) = model(), batch()
    step, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cpu")
    for _ in range(2):
        with torch.amp.autocast("cpu"):
            loss = functional.mse_loss(net(x).float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(step)
        scaler.step(step)
        scaler.update()
        step.zero_grad()
    return scaler.get_scale(), list(net.parameters())


class Square(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@snippet
def a_function_of_ones_own():
    x = torch.arange(3.0, requires_grad=True)
    Square.apply(x).sum().backward()
    return x.grad, torch.autograd.gradcheck(Square.apply, torch.ones(2).double().requires_grad_())


# Checkpoints of activations


def checkpointed(**how):
    from torch.utils.checkpoint import checkpoint

    net, (x, _) = nn.Sequential(model(), nn.Dropout(0.5)), batch()
    x.requires_grad_()
    torch.manual_seed(2)
    checkpoint(net, x, **how).sum().backward()
    return x.grad, [p.grad for p in net.parameters()]


@snippet
def checkpoint_without_reentry():
    return checkpointed(use_reentrant=False)


@snippet
def checkpoint_with_reentry():
    return checkpointed(use_reentrant=True)


@snippet
def checkpoint_under_autocast():
    with torch.autocast("cpu"):
        return checkpointed(use_reentrant=False)


@snippet
def checkpoint_of_a_sequence():
    from torch.utils.checkpoint import checkpoint_sequential

    x = batch()[0].requires_grad_()
    checkpoint_sequential(model(), 2, x, use_reentrant=False).sum().backward()
    return x.grad


# Data


def dataset(rows=8):
    return torch.utils.data.TensorDataset(torch.arange(rows * 2.0).view(rows, 2))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        yield from range(0 if worker is None else worker.id * 10, 20, 5)


def loaded(data=None, **how):
    loader = torch.utils.data.DataLoader(dataset() if data is None else data, batch_size=2, **how)
    return [list(map(list, (epoch for epoch in loader))) for _ in range(2)]


@snippet
def data_loader():
    generator = torch.Generator().manual_seed(3)
    return loaded(shuffle=True, generator=generator), loaded(Stream())


@snippet
def data_loader_forking():
    return loaded(num_workers=2, multiprocessing_context="fork", persistent_workers=True)


@snippet
def data_loader_spawning():
    return loaded(num_workers=1, multiprocessing_context="spawn")


@snippet
def data_loader_with_workers_of_a_stream():
    return loaded(Stream(), num_workers=2, prefetch_factor=1)


@snippet
def data_loader_pinning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return loaded(num_workers=1, pin_memory=True), [str(w.message) for w in caught]


@snippet
def samplers_and_splits():
    data = torch.utils.data
    generator = torch.Generator().manual_seed(3)
    weighted = data.WeightedRandomSampler([0.1, 0.9, 0.4], 5, generator=generator)
    parts = data.random_split(range(10), [0.3, 0.7], generator=generator)
    return list(weighted), [list(part) for part in parts]


# Profiler


def step_twice(profiler):
    for _ in range(2):
        with torch.profiler.record_function("mine"):
            torch.ones(2, 2) @ torch.ones(2, 2)
        profiler.step()


@snippet
def profiler_by_default():
    with torch.profiler.profile() as profiler:
        step_twice(profiler)
    names = {event.key for event in profiler.key_averages()}
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(Path(folder, "trace.json")))
    return sorted(names & {"mine", "aten::mm", "aten::ones"})


@snippet
def profiler_with_a_schedule():
    seen = []
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=1),
        on_trace_ready=lambda p: seen.append(p.step_num),
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
    ) as profiler:
        step_twice(profiler)
    return seen


@snippet
def profiler_of_autograd():
    with torch.autograd.profiler.profile() as profiler:
        torch.ones(3).sum()
    return [event.name for event in profiler.function_events if event.name == "aten::sum"]


@snippet
def what_the_profiler_supports():
    return sorted(map(str, torch.profiler.supported_activities()))


# Compiling


def rotated(x, y):
    return (x.sin() @ y.cos().T).softmax(-1) + 1


def compiled(**how):
    torch._dynamo.reset()
    x, y = torch.linspace(0, 1, 12).view(3, 4), torch.linspace(1, 2, 12).view(3, 4)
    out = torch.compile(rotated, fullgraph=True, **how)(x, y)
    torch.testing.assert_close(out, rotated(x, y))
    return out.shape, out.dtype


@snippet
def inductor():
    return compiled(), compiled(dynamic=True)


@snippet
def inductor_reducing_overhead():
    return compiled(mode="reduce-overhead")


@snippet
def inductor_with_max_autotune():
    return compiled(mode="max-autotune")


@snippet
def inductor_with_max_autotune_without_graphs():
    return compiled(mode="max-autotune-no-cudagraphs")


@snippet
def inductor_with_options():
    return compiled(options={"epilogue_fusion": True, "max_autotune": False})


@snippet
def inductor_training():
    torch._dynamo.reset()
    net = model()
    net.compile()
    return [round(loss, 5) for loss in train(torch.optim.SGD, net=net)[0]]


@snippet
def random_numbers_compiled():
    torch._dynamo.reset()
    torch.manual_seed(5)
    function = torch.compile(
        lambda x: (functional.dropout(x, 0.5), torch.rand(3), torch.randn_like(x))
    )
    return [t.shape for t in function(torch.ones(4))]


@snippet
def other_backends():
    return (
        compiled(backend="eager"),
        compiled(backend="aot_eager"),
        sorted(set(torch._dynamo.list_backends()) & {"inductor", "cudagraphs", "eager"}),
    )


@snippet
def a_graph_break_and_a_guard():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(backend=counter)
    def function(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    return function(torch.ones(2)), function(torch.ones(2, 2)), counter.frame_count


@snippet
def caches_of_compilation():
    compiled()
    artifacts = torch.compiler.save_cache_artifacts()
    return artifacts is not None and len(artifacts[0]) > 0


@snippet
def export():
    program = torch.export.export(
        model(), (batch()[0],), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},)
    )
    file = io.BytesIO()
    torch.export.save(program.run_decompositions(), file)
    file.seek(0)
    again = torch.export.load(file)
    return [str(n.target) for n in again.graph.nodes], again.module()(batch(9)[0])


@snippet
def jit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        scripted = torch.jit.script(model())
        traced = torch.jit.freeze(torch.jit.trace(model().eval(), batch()[0]))
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        again = torch.jit.load(file)
    return again(batch()[0]), traced(batch()[0])


@snippet
def an_operator_of_ones_own():
    name = "everyday::double"
    if not hasattr(torch.ops.everyday, "double"):
        double = torch.library.custom_op(name, mutates_args=())(_double)
        double.register_fake(torch.empty_like)
    op = torch.ops.everyday.double
    return op(torch.ones(2)), torch.library.opcheck(op, (torch.ones(2),))


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@snippet
def traced_by_fx_and_make_fx():
    from torch.fx.experimental.proxy_tensor import make_fx

    x = batch()[0]
    graph = make_fx(rotated, tracing_mode="symbolic")(x, x + 1)
    return torch.fx.symbolic_trace(model())(batch()[0]), [str(n.target) for n in graph.graph.nodes]


@snippet
def fake_tensors_and_flops():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode():
        shape = model()(torch.ones(3, 4)).shape
    with FlopCounterMode(display=False) as counter:
        model()(batch()[0])
    return shape, counter.get_total_flops()


# Attention


@snippet
def attention():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(4)
    q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    outs = []
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            outs.append(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    chosen = torch._fused_sdp_choice(q, k, v)
    outs[1].sum().backward()
    return outs, chosen, q.grad


@snippet
def attention_compiled():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph

    from torch._dynamo.backends.common import aot_autograd

    q = torch.randn(1, 2, 5, 8)
    attend = torch.compile(
        lambda q: functional.scaled_dot_product_attention(q, q, q),
        backend=aot_autograd(fw_compiler=backend),
    )
    return attend(q).shape, graphs


@snippet
def flex_attention():
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    torch.manual_seed(4)
    q = torch.randn(1, 1, 16, 8)
    mask = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 16, 16, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        return flex(q, q, q, block_mask=mask)


@snippet
def transformer():
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 3, 8)
    with torch.inference_mode():
        fast = layer.eval()(x)
    return layer.train()(x).shape, fast


# Distributed, on gloo


def start(rank, folder, size):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )


def data_parallel(rank, folder, queue):
    start(rank, folder, 2)
    net = nn.parallel.DistributedDataParallel(model())
    x, y = batch()
    functional.mse_loss(net(x[rank::2]), y[rank::2]).backward()
    gathered = [torch.zeros(2) for _ in range(2)] if rank == 0 else None
    dist.gather(torch.full((2,), float(rank)), gathered)
    objects = [None, None] if rank == 0 else None
    dist.gather_object({"rank": rank}, objects)
    sent, got = torch.full((2,), rank + 1.0), torch.zeros(2)
    ops = [dist.P2POp(dist.isend, sent, 1 - rank), dist.P2POp(dist.irecv, got, 1 - rank)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    total = torch.ones(3) * (rank + 1)
    dist.all_reduce(total)
    dist.barrier()
    if rank == 0:
        grads = [p.grad.tolist() for p in net.parameters()]
        queue.put((grads, [g.tolist() for g in gathered], objects, got.tolist(), total.tolist()))
    dist.destroy_process_group()


def sharded(rank, folder, queue):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    start(rank, folder, 2)
    mesh = init_device_mesh("cpu", (2,))
    net = model()
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    step = torch.optim.Adam(net.parameters())
    net(batch()[0]).sum().backward()
    step.step()
    tensor = distribute_tensor(torch.arange(8.0).view(4, 2), mesh, [Shard(0)])
    whole = (tensor @ tensor.T).redistribute(mesh, [Replicate()]).to_local()
    dcp.save({"net": net.state_dict()}, checkpoint_id=f"{folder}/saved")
    state = {"net": {name: torch.zeros_like(p) for name, p in net.state_dict().items()}}
    dcp.load(state, checkpoint_id=f"{folder}/saved")
    loaded = {name: p.full_tensor().tolist() for name, p in state["net"].items()}
    if rank == 0:
        queue.put((whole.tolist(), loaded))
    dist.barrier()
    dist.destroy_process_group()


def ranks(function):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        started = torch.multiprocessing.start_processes(
            function, (folder, queue), nprocs=2, join=False, start_method="spawn"
        )
        result = queue.get(timeout=240)
        while not started.join():
            pass
    return result


@snippet
def distributed_data_parallel():
    return ranks(data_parallel)


@snippet
def fully_sharded_tensors_and_checkpoints():
    return ranks(sharded)


@snippet
def one_rank():
    from torch.distributed.fsdp import fully_shard

    with tempfile.TemporaryDirectory() as folder:
        start(0, folder, 1)
        try:
            net = model()
            fully_shard(net)
            net(batch()[0]).sum().backward()
            default = dist.get_default_backend_for_device("cpu")
            return [p.grad.full_tensor() for p in net.parameters()], default
        finally:
            dist.destroy_process_group()


@snippet
def data_parallel_in_one_process():
    return nn.DataParallel(model())(batch()[0])


# Functions of functions


@snippet
def functional_transforms():
    from torch import func

    x = torch.linspace(0, 1, 6).view(2, 3)
    net = model()
    params = dict(net.named_parameters())

    def loss(params, x):
        return func.functional_call(net, params, (x,)).sum()

    return (
        func.vmap(func.grad(lambda v: v.sin().sum()))(x),
        func.jacrev(torch.exp)(x[0]),
        func.hessian(lambda v: (v**3).sum())(x[0]),
        func.jvp(torch.sin, (x,), (x,)),
        func.grad(loss)(params, batch()[0]),
    )


@snippet
def forward_mode():
    import torch.autograd.forward_ad as fwad

    with fwad.dual_level():
        dual = fwad.make_dual(torch.ones(2), torch.arange(2.0))
        return fwad.unpack_dual(dual.exp()).tangent


@snippet
def sparse():
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    coo, csr = dense.to_sparse(), _quietly(dense.to_sparse_csr)
    embedding = nn.EmbeddingBag(4, 2, sparse=True)
    embedding(torch.tensor([[0, 1]])).sum().backward()
    step = torch.optim.SparseAdam(embedding.parameters())
    step.step()
    return (coo @ dense), (csr @ dense), coo.coalesce().indices(), embedding.weight.grad.is_sparse


def _quietly(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta
        return function()


@snippet
def nested_tensors():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    return (nested * 2).sum(), nested.to_padded_tensor(0.0)


@snippet
def complex_numbers_and_algebra():
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    return (
        torch.fft.rfft(torch.arange(8.0)),
        torch.linalg.solve(matrix, torch.ones(2)),
        torch.linalg.cholesky(matrix),
        torch.einsum("ij,jk->ik", matrix, matrix),
        torch.polar(torch.ones(1), torch.ones(1)),
    )


# Processes and files


def squared(queue, tensor, taken):
    queue.put(tensor**2)
    tensor.add_(1)
    taken.wait(120)  # the memory is this process's


def several(context_name):
    context = torch.multiprocessing.get_context(context_name)
    queue, taken = context.Queue(), context.Event()
    tensor = torch.arange(4.0).share_memory_()
    process = context.Process(target=squared, args=(queue, tensor, taken))
    process.start()
    result = queue.get(timeout=120).clone()
    taken.set()
    process.join()
    return result, tensor, process.exitcode, tensor.is_shared()


@snippet
def multiprocessing_by_fork():
    return several("fork")


@snippet
def multiprocessing_by_spawn():
    return several("spawn")


@snippet
def a_child_that_fails():
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=os._exit, args=(7,))
    process.start()
    process.join()
    return process.exitcode


@snippet
def saving_and_loading():
    net, file = model(), io.BytesIO()
    torch.save({"net": net.state_dict(), "step": 3}, file)
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    file.seek(0)
    mapped = torch.load(file, map_location=lambda storage, _: storage)
    other = model()
    keys = other.load_state_dict(state["net"])
    old = io.BytesIO()
    torch.save(torch.ones(2), old, _use_new_zipfile_serialization=False)
    old.seek(0)
    return (
        state["step"],
        str(keys),
        mapped["net"],
        torch.load(old),
        torch.serialization.save is torch.save,
    )


@snippet
def loading_what_is_refused():
    file = io.BytesIO()
    torch.save(collections.Counter("aab"), file)
    torch.save(Square, other := io.BytesIO())
    other.seek(0)
    try:
        return torch.load(other)
    except pickle.UnpicklingError as error:
        return str(error)


@snippet
def pickling_and_copying():
    tensor = torch.arange(3.0, requires_grad=True)
    again = pickle.loads(pickle.dumps(tensor))
    storage = copy.deepcopy(torch.ones(2).untyped_storage())
    return again, copy.deepcopy(model()).state_dict(), storage.tolist(), repr(tensor)


@snippet
def exchange_of_memory():
    import numpy

    array = numpy.arange(3.0)
    tensor = torch.from_numpy(array)
    tensor[0] = 5
    shared = torch.from_dlpack(tensor)
    shared[1] = 6
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    return array.tolist(), torch.utils.dlpack.from_dlpack(capsule), tensor.__dlpack_device__()


# Modules


@snippet
def hooks():
    net, calls = model(), []
    net.register_forward_pre_hook(lambda m, args: calls.append("before"))
    net.register_forward_hook(lambda m, args, out: calls.append("after"))
    net.register_full_backward_hook(lambda m, gi, go: calls.append("backward"))
    net[0].weight.register_hook(lambda g: calls.append("gradient"))
    net[0].weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    net(batch()[0]).sum().backward()
    return calls


@snippet
def modules_moved_and_cast():
    net = model().to(torch.float64).half().to("cpu", torch.float32)
    conv = nn.Conv2d(3, 4, 1).to(memory_format=torch.channels_last)
    messages = []
    for bad in (lambda: net.to(torch.int8), lambda: net.to("nowhere"), lambda: net.to(1, 2, 3)):
        try:
            bad()
        except (TypeError, RuntimeError) as error:
            messages.append(str(error).splitlines()[0])
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    whole = empty.to_empty(device="cpu")
    lazy = nn.LazyLinear(3)
    shape = lazy(torch.ones(2, 5)).shape, lazy.weight.shape
    return (
        net,
        conv.weight.is_contiguous(memory_format=torch.channels_last),
        messages,
        (
            whole.weight.device,
            shape,
        ),
    )


@snippet
def layers():
    torch.manual_seed(7)
    image, sequence = torch.randn(1, 3, 6, 6), torch.randn(2, 3, 4)
    packed = nn.utils.rnn.pack_padded_sequence(sequence, torch.tensor([3, 2]), batch_first=True)
    pooled, where = functional.max_pool2d(image, 2, return_indices=True)
    return (
        nn.Conv2d(3, 2, 3)(image),
        nn.BatchNorm2d(3)(image),
        nn.LSTM(4, 5, batch_first=True)(packed)[1],
        nn.GRU(4, 5)(sequence)[0],
        nn.MultiheadAttention(4, 2)(sequence, sequence, sequence)[0],
        functional.max_unpool2d(pooled, where, 2),
        functional.grid_sample(image, torch.zeros(1, 2, 2, 2), align_corners=False),
        functional.ctc_loss(torch.randn(5, 1, 4).log_softmax(-1), torch.tensor([[1, 2]]), [5], [2]),
    )


@snippet
def parametrized_and_pruned():
    from torch.nn.utils import prune

    torch.manual_seed(7)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    prune.l1_unstructured(other := nn.Linear(3, 2), "weight", 0.5)
    return layer(torch.ones(1, 3)), other.weight


# Random numbers, devices and settings


@snippet
def random_numbers():
    torch.manual_seed(11)
    first = torch.rand(2), torch.randn(2), torch.randperm(5), torch.bernoulli(torch.full((3,), 0.5))
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(12)
        inner = torch.rand(2), torch.multinomial(torch.ones(4), 2)
    torch.set_rng_state(state)
    generator = torch.Generator().manual_seed(13)
    filled = torch.empty(2).normal_(generator=generator), torch.rand(2, generator=generator)
    return (
        first,
        inner,
        torch.rand(2),
        functional.dropout(torch.ones(6)),
        filled,
        torch.initial_seed(),
    )


@snippet
def distributions():
    torch.manual_seed(11)
    normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    return (
        normal.sample(),
        normal.log_prob(torch.ones(2)),
        torch.distributions.Gamma(1.0, 1.0).sample(),
    )


@snippet
def accelerator():
    here = torch.accelerator
    return here.current_accelerator(), here.is_available(), here.device_count()


@snippet
def pinned_memory():
    tensor = torch.ones(2)
    try:
        return tensor.pin_memory().is_pinned()
    except RuntimeError:
        return "refused", tensor.is_pinned()


@snippet
def default_devices_and_dtypes():
    torch.set_default_device("cpu")
    torch.set_default_dtype(torch.float64)
    made = torch.ones(1).dtype, torch.ones(1).device, torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    return made, str(torch.device("cpu")), torch.ones(1).cpu().device, torch.device("cuda", 1)


@snippet
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    made = torch.empty(2).isnan().all(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    return made


@snippet
def printing():
    torch.set_printoptions(precision=2)
    text = repr(torch.tensor([1.23456, 2.0])), str(model()), repr(torch.ones(1, requires_grad=True))
    torch.set_printoptions(profile="default")
    return text, repr(nn.Parameter(torch.ones(1))), f"{torch.ones(1).item():.2f}"


@snippet
def measuring():
    from torch.utils import benchmark

    timer = benchmark.Timer("x + 1", globals={"x": torch.ones(2)})
    return timer.timeit(3).number_per_run, torch.get_num_threads() > 0


@snippet
def warnings_and_errors():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("mine", UserWarning, stacklevel=1)
    messages = []
    for bad in (
        lambda: torch.ones(2) @ torch.ones(3),
        lambda: torch.ones(2, device="cuda"),
        lambda: torch.zeros(1).nothing,
    ):
        try:
            bad()
        except (RuntimeError, AssertionError, AttributeError) as error:
            messages.append((type(error).__name__, str(error)))
    return [str(w.message) for w in caught], messages
