"""The parsed graph: what a model says, and what is said of a model that is broken."""

import re

import ge_models
import pytest
import torch

from npu_lowering.offdevice.engine import graph, recorder
from npu_lowering.offdevice.engine.graph import GraphError, Source

X = torch.arange(6.0).reshape(2, 3)


pytestmark = pytest.mark.usefixtures("torchair")


def _model():
    model = ge_models.Model("small")
    model.data(0, X)
    model.const(torch.tensor([1, 2]), "numbers")
    return model


def test_a_model_is_read():
    model = _model()
    op = model.op("Muls", "half", [("x", "in0:0")], control=["numbers"])
    op.attr["value"].f = 0.5
    op.attr["_readable"].s = b"for people"
    op.attr["axes"].list.i.extend([0, -1])
    op.attr["name"].s = b"abc"
    op.attr["flag"].b = True
    op.output_desc[0].dtype = 27
    op.output_desc[0].attr["_meta"].s = b"Tensor(dtype=torch.bfloat16, shape=torch.Size([s0, 3])"
    model.end("half:0")
    read = graph.parse(model.blob())
    node = read.node("half")
    assert dict(node.inputs) == {"x": Source("in0", 0)}
    assert node.control == ("numbers",)
    assert dict(node.attrs) == {
        "value": 0.5, "_readable": "for people", "axes": (0, -1), "name": "abc", "flag": True,
    }  # fmt: skip
    assert node.outputs[0].dtype == torch.bfloat16
    assert node.outputs[0].shape == ("s0", 3)
    assert torch.equal(read.node("numbers").attrs["value"], torch.tensor([1, 2]))
    assert [one.name for one in read.inputs] == ["in0"]
    assert read.inputs[0].outputs[0].shape == (2, 3)
    assert read.outputs == (Source("half", 0),)
    assert str(node) == (
        "   half = Muls(x=in0:0, after=numbers, axes=[0, -1], flag=True, name='abc', value=0.5)"
        " -> bfloat16[s0, 3]"
    )
    assert str(read.node("numbers")) == "   numbers = Const(value=int64[2] [1, 2]) -> int64[2]"


def test_what_is_rarely_there_is_read():
    model = _model()
    model.const(torch.empty(0, 2, dtype=torch.int64), "none")
    op = model.op("Abs", "abs", [("x", "in0:0")])
    op.attr["pairs"].list_list_int.list_list_i.add().list_i.extend([0, 1])
    op.attr["ratios"].list_list_float.list_list_f.add().list_f.extend([0.5])
    op.attr["blob"].s = b"\xff"
    op.attr["nothing"].SetInParent()
    op.output_desc[0].attr["_meta"].s = b"Tensor(of a kind that is not known)"
    op = model.op("Abs", "private", [("x", "in0:0")])
    op.output_desc[0].attr["origin_shape"].list.i.extend([4, 5])
    model.end("abs:0")
    read = graph.parse(model.blob())
    assert dict(read.node("abs").attrs) == {
        "pairs": ((0, 1),), "ratios": ((0.5,),), "blob": b"\xff", "nothing": None,
    }  # fmt: skip
    assert read.node("abs").outputs[0].shape is None
    assert read.node("private").outputs[0].shape == (4, 5)
    assert read.node("none").attrs["value"].shape == (0, 2)


def test_a_dtype_without_meta_is_not_believed():
    model = _model()
    model.op("Abs", "abs", [("x", "in0:0")]).output_desc[0].dtype = 1
    model.end("abs:0")
    info = graph.parse(model.blob()).node("abs").outputs[0]
    assert (info.dtype, info.shape, str(info)) == (None, None, "?[?]")


def test_an_optional_input_that_is_not_fed_is_left_out():
    model = _model()
    op = model.op("MatMulV2", "mm", [("x1", "in0:0"), ("x2", "in0:0"), ("bias", "")])
    op.input_desc[2].attr["_is_unfed_optional"].i = 1
    model.end("mm:0")
    assert list(graph.parse(model.blob()).node("mm").inputs) == ["x1", "x2"]


def test_nothing_in_a_graph_can_be_changed():
    model = _model()
    model.end("in0:0")
    read = graph.parse(model.blob())
    with pytest.raises(AttributeError):
        read.name = "other"
    with pytest.raises(TypeError):
        read.nodes[0].attrs["index"] = 1
    with pytest.raises(TypeError):
        read.nodes[1].inputs["x"] = Source("in0", 0)


def test_a_node_is_found():
    model = _model()
    model.end("in0:0")
    read = graph.parse(model.blob())
    assert [node.name for node in read.nodes_of("Const")] == ["numbers"]
    assert read.nodes_of("Add") == ()
    with pytest.raises(KeyError, match="graph 'small' has no node 'none'"):
        read.node("none")


def _short_const(model):
    model.const(torch.tensor([1, 2]), "cut").attr["value"].t.data = b"1"
    model.end("in0:0")


def _second_end(model):
    model.end("in0:0")
    model.end("in0:0").name = "other"


def _same_input_twice(model):
    model.op("Abs", "abs", [("x", "in0:0"), ("x", "in0:0")])
    model.end("abs:0")


def _no_descriptor(model):
    del model.op("Abs", "abs", [("x", "in0:0")]).input_desc[:]
    model.end("abs:0")


def _bad_dtype(model):
    model.op("Abs", "abs", [("x", "in0:0")]).output_desc[0].dtype = 99
    model.end("abs:0")


def _strange_const(model):
    model.const(torch.tensor([1, 2]), "strange").attr["value"].t.desc.dtype = 13  # DT_STRING
    model.end("in0:0")


BROKEN = {
    "no such node": (lambda m: m.end("none:0"), "'NetOutput' .* reads none:0, and there is no"),
    "no such output": (lambda m: m.end("in0:1"), "reads in0:1, and that node has 1 outputs"),
    "not an edge": (lambda m: m.end("in0"), "its input 'in0' is not of the form node:index"),
    "no such control": (lambda m: m.end(control=["none"]), "reads none:-1, and there is no such"),
    "nothing read": (lambda m: m.end(""), "its input 'input0' reads nothing, and is not optional"),
    "no end": (lambda _: None, "'small' must have one NetOutput, it has 0"),
    "two ends": (_second_end, "must have one NetOutput, it has 2"),
    "one name twice": (lambda m: (m.data(1, X, "in0"), m.end("in0:0")), "two nodes .* name 'in0'"),
    "a gap": (lambda m: (m.data(2, X), m.end("in0:0")), r"0, 1, 2, ...; they have \[0, 2\]"),
    "cut short": (_short_const, r"'cut' \(Const\): a constant of DT_INT64\[2\] needs 16 bytes"),
    "no torch dtype": (
        _strange_const,
        r"'strange' .* a constant of DT_STRING cannot be held by torch",
    ),
    "an input twice": (_same_input_twice, r"'abs' \(Abs\): it has two inputs named 'x'"),
    "no descriptor": (_no_descriptor, "it has 1 inputs and 0 input descriptors"),
    "no such dtype": (_bad_dtype, "99 is not the number of a dtype of ge.proto"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_model_is_said(name):
    breaks, message = BROKEN[name]
    model = _model()
    breaks(model)
    with pytest.raises(GraphError, match=message):
        graph.parse(model.blob())


def test_what_is_no_model_is_said():
    with pytest.raises(GraphError, match="not a serialised"):
        graph.parse(b"\xff\xff\xff")
    with pytest.raises(GraphError, match="must hold one graph, it holds 0"):
        graph.parse(b"")


def test_dtypes_of_attributes_are_counted_as_ge_counts():
    for dtype, code in ge_models.GE_CODES.items():
        assert graph.ge_code_to_dtype(code) == dtype
    with pytest.raises(GraphError, match="DT_INT4 has no torch dtype"):
        graph.ge_code_to_dtype(29)


def test_the_last_graph(torchair, monkeypatch):
    monkeypatch.setattr(recorder, "_last", [])
    with pytest.raises(GraphError, match="no graph was compiled in this process yet"):
        recorder.last_graph()
    ge_models.lower(torchair, lambda x: x + 1, (X,))
    assert [node.type for node in recorder.last_graph().nodes][-2:] == ["Add", "NetOutput"]
    # Older TorchAIR goes on counting from graph to graph.
    add = r"Add\w* = Add\(x1=arg0_1:0, x2=Const\w*:0\) -> float32\[2, 3\]"
    assert re.search(add, str(recorder.last_graph()))


def test_a_recording_keeps_what_is_lowered_while_it_is_open(torchair):
    with recorder.recording() as outer:
        with pytest.raises(GraphError, match="no graph was lowered here yet"):
            outer()
        ge_models.lower(torchair, lambda x: x + 1, (X,))
        with recorder.recording() as inner:
            ge_models.lower(torchair, lambda x: x * 2, (X,))
        assert inner.graphs == outer.graphs[1:] == [outer()]
    ge_models.lower(torchair, lambda x: x - 1, (X,))
    assert len(outer.graphs) == 2
