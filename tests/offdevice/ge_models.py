"""Small GE models built by hand, and torch programs lowered by the real TorchAIR."""

import logging
import os
import warnings

import torch

from npu_lowering import offdevice
from npu_lowering.offdevice.engine import graph
from npu_lowering.offdevice.engine.call import Call
from npu_lowering.offdevice.engine.graph import Node, Source

GE_CODES = {torch.float32: 0, torch.int8: 2, torch.int32: 3, torch.int64: 9, torch.bool: 12}
# A descriptor counts otherwise than an attribute.
PROTO = {torch.float32: 1, torch.int8: 3, torch.int32: 7, torch.int64: 8, torch.bool: 11}
PROTO[torch.bfloat16] = 27


def install(cache):
    """Bring TorchAIR into this process; what torch_npu warns of while it is imported is its own."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        offdevice.install()
        import torchair
    torchair.logger.setLevel(logging.ERROR)
    return torchair


def lower(torchair, function, args, *, dynamic=False):
    """Compile with the npu backend, run once, and give the result and the graph."""
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchAIR's and Dynamo's own, of deprecated torch
        result = torch.compile(function, backend=backend, dynamic=dynamic)(*args)
    return result, offdevice.last_graph()


class Model:
    """A serialised model, built op by op."""

    def __init__(self, name="hand"):
        from torchair._ge_concrete_graph import ge_ir_pb2

        self.proto = ge_ir_pb2.ModelDef()
        self.graph = self.proto.graph.add()
        self.graph.name = name

    def op(self, op_type, name, inputs=(), outputs=("y",), control=()):
        """Add a node; inputs are (name, source) pairs."""
        op = self.graph.op.add()
        op.type, op.name = op_type, name
        for before in control:
            op.input.append(f"{before}:-1")
        for input_name, source in inputs:
            op.input.append(source)
            op.input_desc.add().name = input_name
        for output in outputs:
            op.output_desc.add().name = output
        return op

    def data(self, index, tensor, name=None):
        """Add an input of the graph, described as the tensor is."""
        op = self.op("Data", name or f"in{index}")
        op.attr["index"].i = index
        op.output_desc[0].dtype = PROTO[tensor.dtype]
        op.output_desc[0].shape.dim.extend(tensor.shape)
        op.output_desc[0].layout = "ND"
        return op

    def const(self, tensor, name):
        """Add a constant."""
        op = self.op("Const", name, outputs=())
        value = op.attr["value"].t
        value.desc.dtype = PROTO[tensor.dtype]
        value.desc.shape.dim.extend(tensor.shape)
        value.data = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
        op.output_desc.add().CopyFrom(value.desc)
        return op

    def end(self, *sources, control=()):
        """Add NetOutput."""
        inputs = [(f"input{place}", source) for place, source in enumerate(sources)]
        return self.op("NetOutput", "NetOutput", inputs, (), control)

    def blob(self):
        return self.proto.SerializeToString()


def call(op_type, inputs, attrs=None, outputs=1, callers=()):
    """A kernel's call, without a graph around it."""
    infos = tuple(graph.TensorInfo(f"y{place}", None, None, "ND") for place in range(outputs))
    sources = {name: Source(name, 0) for name in inputs}
    node = Node("hand", op_type, sources, (), attrs or {}, infos)
    return Call(node, inputs, lambda tensor: any(tensor is one for one in callers))
