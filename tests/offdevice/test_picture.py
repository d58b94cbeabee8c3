"""Pictures of lowered graphs: what they show, where things go, and the command that draws them."""

import random
import re
import shutil
import sys
from xml.etree import ElementTree

import pytest
import torch

from npu_lowering import __main__
from npu_lowering.offdevice import OffDeviceError, probe
from npu_lowering.offdevice.engine import recorder
from npu_lowering.offdevice.engine.graph import FUSED_TYPE, Graph, Node, Source, TensorInfo
from npu_lowering.offdevice.picture import command, layout, svg
from npu_lowering.offdevice.picture import model as pictures
from npu_lowering.offdevice.picture.dot import dot
from npu_lowering.offdevice.picture.html import page
from npu_lowering.offdevice.picture.layout import Link, Size
from npu_lowering.offdevice.process import launcher

SVG = "{http://www.w3.org/2000/svg}"


def _node(name, op_type, inputs=None, attrs=None, outputs=(), control=()):
    sources = {key: Source(*value) for key, value in (inputs or {}).items()}
    return Node(name, op_type, sources, control, attrs or {}, outputs)


def _info(dtype=torch.float32, shape=(4, "s0")):
    return TensorInfo("y", dtype, shape, "ND")


def _graph(name="a layer"):
    """Every kind of node; one of them has a name that no language may take as its own."""
    nodes = (
        _node("x <&\"'\\", "Data", attrs={"index": 0}, outputs=(_info(torch.int8),)),
        _node("w", "Data", attrs={"index": 1}, outputs=(_info(torch.int8, (2, 8, 8)),)),
        _node("axis", "Const", attrs={"value": torch.tensor([-1])}, outputs=(_info(shape=(1,)),)),
        _node("table", "Const", attrs={"value": torch.zeros(99)}, outputs=(_info(shape=(99,)),)),
        _node(
            "TopK",
            "TopKV2",
            {"x": ("table", 0), "k": ("axis", 0)},
            {"largest": True, "_hidden": 1},
            (_info(), TensorInfo("", None, None, "")),
        ),
        _node(
            "fused",
            FUSED_TYPE,
            {"x": ("x <&\"'\\", 0), "w": ("w", 0), "logit": ("TopK", 1)},
            {"output_bs": 36},
            (_info(shape=(36, 8)),),
            control=("TopK", "axis"),  # axis is shown in its reader's box
        ),
        _node("NetOutput", "NetOutput", {"input0": ("fused", 0)}),
    )
    return Graph(name, nodes, nodes[:2], (Source("fused", 0),), {})


def test_what_a_picture_shows():
    made = pictures.picture(_graph())
    boxes = {box.name: box for box in made.boxes}
    assert str(made) == f"a layer: 6 boxes, 1 {FUSED_TYPE}"
    assert "axis" not in boxes
    assert boxes["table"].kind == pictures.CONST
    ports = [(port.name, port.text) for port in boxes["TopK"].inputs]
    assert ports == [("x", "float32[99]"), ("k", "[-1]")]
    assert boxes["TopK"].attrs == {"largest": "True"}
    assert boxes["w"].title == "w"
    assert boxes["w"].subtitle == "Data 1"
    assert boxes["w"].outputs[0].text == "int8[2, 8, 8]"
    assert boxes["fused"].kind == pictures.FUSED
    assert [port.text for port in boxes["fused"].inputs] == ["int8[4, s0]", "int8[2, 8, 8]", ""]
    assert "\n  w = w:0 int8[2, 8, 8]\n" in boxes["fused"].tooltip()
    ends = [(a.source, a.output, a.target, a.port) for a in made.arrows]
    assert ends == [
        (2, 0, 3, 0),
        (0, 0, 4, 0),
        (1, 0, 4, 1),
        (3, 1, 4, 2),
        (3, -1, 4, -1),
        (4, 0, 5, 0),
    ]


def test_a_constant_that_is_given_back_is_a_box():
    nodes = (
        _node("one", "Const", attrs={"value": torch.tensor(1)}, outputs=(_info(shape=()),)),
        _node("NetOutput", "NetOutput", {"input0": ("one", 0)}),
    )
    made = pictures.picture(Graph("g", nodes, (), (Source("one", 0),), {}))
    assert [box.kind for box in made.boxes] == [pictures.CONST, pictures.OUTPUT]
    assert "value=int64[] 1" in made.boxes[0].tooltip()


@pytest.mark.parametrize("seed", range(8))
def test_boxes_do_not_overlap_and_arrows_go_down(seed):
    choose = random.Random(seed)
    count = choose.randint(2, 40)
    sizes = [Size(choose.randint(40, 300), choose.randint(20, 90)) for _ in range(count)]
    links = []
    for target in range(1, count):
        for _ in range(choose.randint(0, 3)):
            source = choose.randrange(target)
            out, into = choose.random() * sizes[source].width, choose.random() * sizes[target].width
            links.append(Link(source, out, target, into))
    placed = layout.layout(sizes, links)
    assert placed == layout.layout(sizes, links)
    boxes = [(x, y, x + s.width, y + s.height) for (x, y), s in zip(placed.corners, sizes)]
    assert min(x for x, *_ in boxes) >= 0
    assert max(box[2] for box in boxes) <= placed.width
    assert max(box[3] for box in boxes) <= placed.height
    for place, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:place]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (place, other)
    for link, path in zip(links, placed.paths):
        start, end = boxes[link.source], boxes[link.target]
        assert path[0] == (start[0] + link.out, start[3])
        assert path[-1] == (end[0] + link.into, end[1])
        assert all(upper[1] <= lower[1] for upper, lower in zip(path, path[1:]))


def test_arrows_from_one_output_share_their_bends():
    links = [
        Link(0, 5, 1, 5),
        Link(1, 5, 2, 5),
        Link(2, 5, 3, 2),
        Link(0, 1, 3, 5),
        Link(0, 1, 3, 8),
    ]
    placed = layout.layout([Size(10, 10)] * 4, links)
    one, other = placed.paths[3:]
    assert one[:-1] == other[:-1]
    assert len(one) > 2
    assert one[-1] != other[-1]


def test_a_layout_ends_whatever_it_is_given():
    assert layout.layout([], []).corners == ()
    cycle = [Link(0, 0, 1, 0), Link(1, 0, 0, 0), Link(1, 0, 1, 0)]
    assert len(layout.layout([Size(9, 9)] * 2, cycle).paths) == 3


def test_a_page_stands_by_itself():
    made = pictures.picture(_graph())
    text = page([made, made], "two <graphs>")
    assert "<h1>two &lt;graphs&gt;</h1>" in text
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"src=|@import|<link", text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'href="#([^"]*)"', text), *re.findall(r"url\(#(.*?)\)", text)} <= {*ids}
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 2
    root = ElementTree.fromstring(drawings[0])
    boxes = root.findall(".//{*}g")
    assert [box.get("class") for box in boxes].count("box fused") == 1
    (fused,) = (box for box in boxes if box.get("class") == "box fused")
    words = {
        element.text for element in fused.iter() if element.tag in (f"{SVG}text", f"{SVG}tspan")
    }
    for word in ("w", "int8[2, 8, 8]", "logit", "output_bs=36", "float32[36, 8]", FUSED_TYPE):
        assert word in words
    assert boxes[0].find("{*}title").text.startswith("x <&\"'\\")
    assert len(root.findall("{*}path")) == len(made.arrows)


def test_an_arrow_is_as_short_as_its_path():
    assert svg._curve([(1, 0), (1, 9), (1, 20), (1, 30)]) == "M1.0 0.0 V30.0"
    bent = svg._curve([(1, 0), (1, 8), (3, 10), (3, 30)])
    assert bent == "M1.0 0.0 V8.0 C1.0 9.0 3.0 9.0 3.0 10.0 V30.0"


def test_the_text_for_graphviz():
    text = dot(pictures.picture(_graph()))
    assert text.count(" -> ") - text.count(" -> x") >= 6
    assert "n3:o1:s -> n4:i2:n [" in text
    assert "style=dashed" in text
    assert r"x <&\"'\\\n" in text
    assert "<B>logit</B>" in text


needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


@needs_dot
def test_what_graphviz_draws(tmp_path):
    pytest.importorskip("graphviz", reason="needs the extra graph")
    graph = _graph()
    assert command.save([graph], tmp_path / "g.svg", "") == [tmp_path / "g.svg"]
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    classes = [element.get("class") for element in root.iter(f"{SVG}g")]
    assert (classes.count("node"), classes.count("edge")) == (6, 6)
    titles = [e.get("{http://www.w3.org/1999/xlink}title") or "" for e in root.iter(f"{SVG}a")]
    assert any("output_bs=36" in title for title in titles)
    assert any("x <&\"'\\" in title for title in titles)
    many = command.save([graph, graph], tmp_path / "g.png", "")
    assert many == [tmp_path / "g-1.png", tmp_path / "g-2.png"]
    assert many[1].read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def script(monkeypatch):
    """Makes the launcher lower these graphs, and end like this."""

    def script(*names, ends=lambda: 0):
        def run(_script, _arguments):
            for name in names:
                recorder.remember(_graph(name))
            return ends()

        monkeypatch.setattr(launcher, "run", run)

    return script


def _exit():
    sys.exit(3)


def test_the_last_graph_is_drawn_or_every_one(script, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script("first", "second")
    assert __main__.main(["graph", "s.py"]) == 0
    text = (tmp_path / "graph.html").read_text()
    assert "second: 6 boxes" in text
    assert "first" not in text
    output, errors = capsys.readouterr()
    assert output == f"{tmp_path}/graph.html\n  second: 6 boxes, 1 {FUSED_TYPE}\n"
    assert "this is the last of 2 graphs; see --all" in errors
    assert __main__.main(["graph", "s.py", "--all", "-o", "all.dot"]) == 0
    assert "digraph" in (tmp_path / "all-2.dot").read_text()
    assert capsys.readouterr().err == ""


def test_a_script_that_ends_otherwise_is_drawn_as_well(script, tmp_path):
    script("only", ends=_exit)
    with pytest.raises(SystemExit, match="3"):
        command.main("s.py", [], str(tmp_path / "g.html"), every=False)
    assert (tmp_path / "g.html").is_file()


def test_a_script_that_ends_before_it_lowers_anything(script, tmp_path, capsys):
    def fail():
        raise ValueError("too soon")

    script(ends=fail)
    with pytest.raises(ValueError, match="too soon"):
        command.main("s.py", [], str(tmp_path / "g.html"), every=False)
    script(ends=lambda: 3)
    assert command.main("s.py", [], str(tmp_path / "g.html"), every=False) == 3
    assert not list(tmp_path.iterdir())
    assert "nothing to draw" not in capsys.readouterr().err


def test_what_cannot_be_drawn(script, tmp_path, capsys, monkeypatch):
    script()
    assert __main__.main(["graph", "s.py", "-o", str(tmp_path / "g.html")]) == 1
    assert "error: s.py lowered no graph, so there is nothing to draw" in capsys.readouterr().err
    script("never run", ends=_exit)
    for name, message in {
        "g.pdf": "must end in .html, .dot, .svg or .png, got",
        "none/g.dot": "there is no folder",
    }.items():
        with pytest.raises(OffDeviceError, match=message):
            command.main("s.py", [], str(tmp_path / name), every=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "graphviz", sys)
    with pytest.raises(OffDeviceError, match=r"program dot, .* not in the PATH; install Graphviz"):
        command.main("s.py", [], str(tmp_path / "g.svg"), every=False)
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(OffDeviceError, match=r"pip install graphviz, or write .html"):
        command.main("s.py", [], str(tmp_path / "g.png"), every=False)
    monkeypatch.setattr(probe, "real_cann", lambda: "libascendcl.so")
    with pytest.raises(OffDeviceError, match="a real CANN is here"):
        command.main("s.py", [], str(tmp_path / "g.html"), every=False)


LINES = {
    "s.py": ([], "graph.html", False),
    "-o g.svg s.py a b": (["a", "b"], "g.svg", False),
    "s.py --steps 3 a --all -o g.svg": (["--steps", "3", "a"], "g.svg", True),
    "s.py --output=g.svg -v -- -o out --all": (["-v", "-o", "out", "--all"], "g.svg", False),
}


@pytest.mark.parametrize("line", LINES)
def test_arguments_are_ours_or_the_scripts(monkeypatch, line):
    seen = []
    monkeypatch.setattr(command, "main", lambda *given, every: seen.append((*given, every)) or 0)
    assert __main__.main(["graph", *line.split()]) == 0
    assert seen == [("s.py", *LINES[line])]


@pytest.mark.usefixtures("found")
def test_a_script_is_run_and_drawn(python, tmp_path):
    (tmp_path / "script.py").write_text("""
import sys
import torch, torch_npu, torchair
backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
print(torch.compile(lambda x: x.softmax(-1), backend=backend)(torch.ones(2, 4).npu())[0, 0])
sys.exit(sys.argv[1:] != ["--flag"])
""")
    output, _ = python("-m", "npu_lowering", "graph", "script.py", "--flag", "-o", "a.html")
    assert output.splitlines()[0] == "tensor(0.2500)"
    assert "graph_1: 3 boxes, 0 GroupedMatmulFinalizeRouting" in output
    assert "SoftmaxV2" in (tmp_path / "a.html").read_text()
