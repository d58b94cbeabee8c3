"""What a process is asked about its NPU, and what it answers, as JSON."""

# ruff: noqa: BLE001 -- whatever is raised is the answer

import io
import json
import os
import tempfile
from pathlib import Path

if os.environ.get("STATE") == "install":  # first: a plain import of torch fails without CANN
    from npu_lowering import offdevice

    offdevice.install()

import torch


def npu():
    import torch_npu

    return torch_npu.npu


def tensor():
    return torch.ones(2)


def saved():
    file = io.BytesIO()
    torch.save(torch.ones(2), file)
    file.seek(0)
    return file


def lowered():
    import torchair

    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    out = torch.compile(lambda x: x + 1, backend=backend, fullgraph=True)(torch.ones(2))
    from npu_lowering import offdevice

    return out.tolist(), [node.type for node in offdevice.last_graph().nodes_of("Add")]


def profiled():
    import torch_npu

    with (
        tempfile.TemporaryDirectory() as folder,
        torch_npu.profiler.profile(
            activities=[
                torch_npu.profiler.ProfilerActivity.CPU,
                torch_npu.profiler.ProfilerActivity.NPU,
            ],
            schedule=torch_npu.profiler.schedule(wait=0, warmup=0, active=1, repeat=1),
            on_trace_ready=torch_npu.profiler.tensorboard_trace_handler(folder),
            experimental_config=torch_npu.profiler._ExperimentalConfig(),
        ) as profiler,
    ):
        torch.ones(2) + 1
        profiler.step()
        return len([*Path(folder).iterdir()])


def captured():
    graph, x = npu().NPUGraph(), torch.ones(2)
    with npu().graph(graph):
        y = x + 1
    x.fill_(3)
    graph.replay()
    return y.tolist()


def hccl():
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("hccl", init_method=store, rank=0, world_size=1)


def accelerated():
    device = torch.accelerator.current_accelerator()
    with torch.accelerator.device_index(torch.accelerator.current_device_index()):
        torch.accelerator.synchronize()
    made = torch.ones(2, device=device)
    return made.tolist(), torch.accelerator.memory_allocated()


def seeded():
    first = []
    for _ in range(2):
        torch.npu.manual_seed_all(3)
        first.append(torch.rand(2, device="npu"))
    state = torch.npu.get_rng_state()
    drawn = torch.rand(2)
    torch.npu.set_rng_state(state)
    return bool((first[0] == first[1]).all() and (drawn == torch.rand(2)).all())


def amp():
    scaler = torch.npu.amp.GradScaler()
    layer = torch.nn.Linear(2, 2).npu()
    step = torch.optim.SGD(layer.parameters(), 0.1)
    with torch.npu.amp.autocast(dtype=torch.bfloat16):
        out = layer(torch.ones(1, 2).npu())
    scaler.scale(out.float().sum()).backward()
    scaler.step(step)
    scaler.update()
    return str(out.dtype), scaler.is_enabled(), scaler.get_scale()


def traced():
    return torch.compile(
        lambda x: x + torch.npu.is_available() + torch.npu.device_count(), backend="eager"
    )(torch.ones(1)).tolist()


QUESTIONS = {
    "torch.npu.is_available()": lambda: npu().is_available(),
    "torch.npu.device_count()": lambda: npu().device_count(),
    "torch.accelerator.current_accelerator()": lambda: str(torch.accelerator.current_accelerator()),
    "torch.accelerator.is_available()": lambda: torch.accelerator.is_available(),
    "x.npu()": lambda: tensor().npu().tolist(),
    "x.to('npu:0')": lambda: tensor().to("npu:0").tolist(),
    "x.to(0)": lambda: tensor().to(0).tolist(),
    "module.npu()": lambda: torch.nn.Linear(1, 1).npu().weight.shape,
    "module.to('npu')": lambda: torch.nn.Linear(1, 1).to("npu").weight.shape,
    "torch.ones(2, device='npu')": lambda: torch.ones(2, device="npu").tolist(),
    "torch.tensor([1], device='npu')": lambda: torch.tensor([1], device="npu").tolist(),
    "torch.load(map_location='npu')": lambda: torch.load(saved(), map_location="npu").tolist(),
    "torch.autocast('npu')": lambda: str(torch.autocast("npu").__enter__() and "entered"),
    "current_device()": lambda: npu().current_device(),
    "set_device(0)": lambda: npu().set_device(0),
    "synchronize()": lambda: npu().synchronize(),
    "Stream()": lambda: npu().Stream().query(),
    "current_stream()": lambda: npu().current_stream().query(),
    "lowered": lowered,
    "NPUGraph()": captured,
    "npugraph_ex": lambda: torch.compile(lambda x: x + 1, backend="npugraph_ex")(tensor()).tolist(),
    "hccl": hccl,
    "get_soc_version()": lambda: npu().get_soc_version(),
    "get_device_properties(0)": lambda: npu().get_device_properties(0).total_memory > 0,
    "record_stream": lambda: tensor().record_stream(npu().current_stream()),
    "is_bf16_supported()": lambda: npu().is_bf16_supported(),
    "torch_npu.profiler.profile": profiled,
    "torch.accelerator": accelerated,
    "random numbers": seeded,
    "amp": amp,
    "traced": traced,
}


def ask(name):
    try:
        return ["gave", QUESTIONS[name]()]
    except Exception as error:
        return ["raised", type(error).__name__, str(error)]


def ask_all():
    return {name: ask(name) for name in QUESTIONS}


if __name__ == "__main__":
    print(json.dumps(ask_all()))
