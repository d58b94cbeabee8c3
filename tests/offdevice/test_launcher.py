"""``python -m npu_lowering run``: the script finds a device, and otherwise plain python."""

import signal
import sys
from pathlib import Path

import pytest
from processes import LIGHT

from npu_lowering.__main__ import main
from npu_lowering.offdevice import OffDeviceError
from npu_lowering.offdevice.process import launcher, start

# The interface document's own two scripts.
EXAMPLES = Path(__file__).parents[1] / "data" / "document"

# The launcher without a device, for what has nothing to do with one.
BARE = f"""{LIGHT}
from npu_lowering.offdevice.process import launcher
launcher.prepare = lambda: sys.meta_path.append(launcher._TensorflowFinder())
run = launcher.run_module if sys.argv[1] == "-m" else launcher.run
del sys.argv[1:1 + (sys.argv[1] == "-m")]
sys.exit(run(sys.argv[1], sys.argv[2:]))
"""


@pytest.fixture
def script(tmp_path):
    def script(text, name="script.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return script


# Each is run by python and by the launcher, and all that can be seen has to be the same.
SCRIPTS = {
    "surroundings": """
import sys, __main__
print(__name__, __file__, __doc__, __package__, __spec__, __cached__, type(__loader__))
print(sys.argv, sys.path[0], __main__.__dict__ is globals())
""",
    "annotations of its own, not the launcher's": "def f(x: 1 + 1): pass\nprint(f.__annotations__)",
    "reads its input": "import sys; print(input(), sys.stdin.read())",
    "a module beside it": "import beside; print(beside.__file__)",
    "exits with a code": "import sys; sys.exit(7)",
    "exits with none": "import sys; sys.exit()",
    "exits with a message": "import sys; sys.exit('it is over')",
    "exits with True": "raise SystemExit(True)",
    "leaves something to do": "import atexit; atexit.register(print, 'done'); print('last')",
    "raises": "def f():\n    raise ValueError('no')\nf()",
    "raises from": """
try:
    1 / 0
except ZeroDivisionError as error:
    raise KeyError('k') from error
""",
    "leaves something to do and raises": """
import atexit
atexit.register(print, 'done')
raise ValueError
""",
    "shows its errors itself": """
import sys
sys.excepthook = lambda kind, error, traceback: print(kind, traceback.tb_frame.f_code.co_name)
raise ValueError
""",
    "is not python": "x = = 1",
    "says how it is written": b"# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))",
    "is interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "interrupts itself and cleans up": """
import atexit
atexit.register(print, 'done')
raise KeyboardInterrupt
""",
    "is terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "handles being terminated": """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
os.kill(os.getpid(), signal.SIGTERM)
""",
}


MODULES = {
    "surroundings": """
import os, sys, __main__
print(__name__, __file__, __doc__, __package__, __spec__.name, __cached__, type(__loader__))
print(sys.argv, os.path.abspath(sys.path[0]), __main__.__dict__ is globals())
""",
    **{name: SCRIPTS[name] for name in ("exits with a code", "raises", "is interrupted")},
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_as_under_plain_python(text, tmp_path, start):
    (tmp_path / "beside.py").write_text("")
    path = tmp_path / "script.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    compare(start, ["script.py"])


@pytest.mark.parametrize("text", MODULES.values(), ids=MODULES)
def test_a_module_as_under_plain_python(text, tmp_path, start):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(text)
    compare(start, ["-m", "package"])


def test_a_module_that_is_not_there(start):
    compare(start, ["-m", "nowhere"])


def compare(start, what):
    """Run it by python and by the launcher."""
    seen = []
    for command in (what, ["-c", BARE, *what]):
        process = start(*command, "one", "--two", "-h", "--", "")
        output, errors = process.communicate("first\nsecond\n", timeout=60)
        seen.append((process.returncode, output, errors))
    plain, launched = seen
    assert launched == plain


def test_exit_codes_are_what_a_shell_expects(script, python):
    path = script("raise KeyboardInterrupt")
    _, errors = python("-c", BARE, path, code=-signal.SIGINT)
    assert errors == (
        f'Traceback (most recent call last):\n  File "{path}", line 1, in <module>\n'
        "    raise KeyboardInterrupt\nKeyboardInterrupt\n"
    )


def test_a_script_that_is_not_there(tmp_path, python):
    _, errors = python("-c", BARE, "nowhere.py", code=2)
    assert errors == (
        "npu_lowering: can't open file 'nowhere.py': [Errno 2] No such file or directory\n"
    )
    _, errors = python("-c", BARE, str(tmp_path), code=2)
    assert "[Errno 21] Is a directory" in errors


TENSORFLOW = """
import numpy, sys
import tensorflow as tf
bfloat16 = tf.bfloat16.as_numpy_dtype
try:
    tf.zeros
except AttributeError as error:
    print(error)
try:
    print(numpy.dtype(bfloat16))
except TypeError as error:
    print(error)
"""


def test_the_tensorflow_that_scripts_touch(script, python):
    output, _ = python("-c", BARE, script(TENSORFLOW))
    missing, dtype = output.splitlines()
    assert missing.startswith("tensorflow.zeros is not here: tensorflow is not installed")
    assert dtype == "bfloat16" or "ml_dtypes is to be installed" in dtype


def test_the_bfloat16_of_ml_dtypes_is_taken(script, python):
    script("import numpy; bfloat16 = numpy.float16", "ml_dtypes.py")
    output, _ = python("-c", BARE, script(TENSORFLOW))
    assert output.splitlines()[1] == "float16"


def test_on_a_device_nothing_is_prepared(monkeypatch):
    monkeypatch.setattr(start, "install", lambda: False)
    finders = list(sys.meta_path)
    launcher.prepare()
    assert sys.meta_path == finders


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
def test_a_safe_path_stays_safe(script, python):
    script("", "beside.py")
    path = script("import beside")
    _, errors = python("-P", "-c", BARE, path, code=1)
    assert "No module named 'beside'" in errors


def test_an_installed_tensorflow_comes_first(script, python):
    script("zeros = 'theirs'", "tensorflow.py")
    output, _ = python("-c", BARE, script("import tensorflow as tf; print(tf.zeros)"))
    assert output == "theirs\n"


DEVICE = """
import io, sys
import torch, torch_npu, torchair

assert sys.argv[1:] == ["one", "--two", "-h"], sys.argv
device = torch.device("npu:0")

# Tensors, moved and made.
host = torch.ones(2)
for there in (host.npu(), host.npu(0), host.npu(device), host.to("npu"), host.to("npu:0"),
              host.to(device), host.to(0), host.to(device="npu", dtype=torch.float32)):
    there.add_(1)  # a tensor of its own
    assert there.tolist() == [2, 2] and host.tolist() == [1, 1]
back = there.cpu()
back.add_(1)
assert there.tolist() == [2, 2]
assert host.to("npu", torch.float64, True).dtype == torch.float64
assert host.to(torch.float16).dtype == torch.float16 and host.to(host) is host
leaf = torch.ones(2, requires_grad=True)
(leaf.npu() * 2).sum().backward()
assert leaf.grad.tolist() == [2, 2]
for name in ("npu", device, "npu:0"):
    assert torch.zeros(2, device=name).tolist() == torch.tensor([0.0, 0.0], device=name).tolist()
    assert torch.zeros_like(host, device=name).device.type == "cpu"
    assert host.new_ones(3, device=name).tolist() == [1] * 3
    assert torch.arange(3, device=name).tolist() == [0, 1, 2]
    assert torch.randn(2, generator=torch.Generator(device=name), device=name).shape == (2,)
assert isinstance(torch.default_generator, torch.Generator)
host.pin_memory().npu(non_blocking=True)
torch.set_default_device("npu")
assert torch.empty(2).device.type == "cpu"
with device:
    assert torch.empty(2).device.type == "cpu"
with torch.device("meta"):
    assert torch.empty(2).is_meta and torch.nn.Linear(2, 2).weight.is_meta
    assert torch.empty(2, device="npu").device.type == "cpu"

# Modules.
module = torch.nn.Linear(2, 2).npu().to("npu").to(device).to(device, torch.float32)
assert module(host.npu()).shape == (2,)
with torch.autocast("npu", dtype=torch.bfloat16):
    assert module(host.npu()).dtype == torch.bfloat16
with torch.autocast(device_type="npu", dtype=torch.bfloat16):
    assert module(host.npu()).dtype == torch.bfloat16

# Files.
for where in ("npu", device, {"cpu": "npu:0"}, None, "cpu"):
    file = io.BytesIO()
    torch.save({"host": host}, file)
    file.seek(0)
    assert torch.load(file, map_location=where)["host"].tolist() == [1, 1]

# The device.
assert torch.npu.is_available() is True and torch.npu.device_count() == 1
torch.npu.set_device("npu:0")
torch.npu.synchronize()
torch.npu.empty_cache()
assert torch.npu.current_device() == 0
assert torch.npu.get_device_name(0) == torchair.core._torchair.GetSocName()
assert torch.npu.get_device_properties(0).total_memory > 0
free, total = torch.npu.mem_get_info()
assert 0 < free <= total and torch.npu.max_memory_allocated() == 0
torch.npu.manual_seed(1)
first = torch.rand(2, device="npu")
torch.npu.manual_seed_all(1)
assert torch.equal(first, torch.rand(2, device="npu"))
stream = torch.npu.Stream()
begin, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
with torch.npu.device(0), torch.npu.stream(stream):
    begin.record()
    stream.wait_event(begin)
    torch.npu.current_stream().record_event(end).synchronize()
assert begin.elapsed_time(end) >= 0 and end.query()
made = stream.record_event(torch.npu.Event(enable_timing=True))
made.wait(stream)
stream.wait_stream(torch.npu.current_stream())
stream.synchronize()
assert stream.query() and begin.elapsed_time(made) >= 0
try:
    begin.elapsed_time(torch.npu.Event(enable_timing=True))
except RuntimeError as error:
    assert "both events must be recorded" in str(error)
else:
    raise AssertionError("an event that was not recorded has a time")

# Formats.
torch_npu.npu.config.allow_internal_format = True
weight = torch.zeros(1, 64, 64, dtype=torch.int8).npu()
cast = torch_npu.npu_format_cast(weight, 29)
assert (torch_npu.get_npu_format(weight), torch_npu.get_npu_format(cast)) == (2, 29)
assert torch.equal(weight, cast)

# Compiled: one graph, in which nothing is moved.
def npu():
    return torch.device("npu")
try:
    torch.compile(lambda x: x + torch.ones(2, device=npu()), fullgraph=True, backend="eager")(host)
except torch._dynamo.exc.Unsupported:
    # torch_npu itself keeps Dynamo from following torch.device, from 2.4 to 2.6.
    assert torch_npu.__version__[:3] in ("2.4", "2.5", "2.6"), torch_npu.__version__
    def npu():
        return device
def moving(x):
    y = x.npu() + x.to("npu") + x.to(device) + torch.ones(2, device="npu")
    y = y * torch.full((2,), 2, device=device) + torch.arange(2, device=npu())
    return torch_npu.npu_format_cast(y.reshape(1, 2), 2) + y.new_zeros(2, device=device)
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph
from torch._dynamo.backends.common import aot_autograd
compiled = torch.compile(moving, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
assert torch.equal(compiled(host), moving(host))
assert len(graphs) == 1
assert not [node for node in graphs[0].graph.nodes if "copy" in str(node.target)], graphs[0]
"""
# The script goes on in a process that it spawns, in which there is a device, too.
SPAWN = """
def child(queue):
    import torch
    queue.put((torch.ones(2, device="npu").npu().tolist(), torch.npu.device_count(), __name__))

if __name__ == "__main__":
    import multiprocessing
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print(queue.get(timeout=120))
    process.join()
    assert process.exitcode == 0
    def last():
        raise ValueError("to be seen")
    last()
"""


@pytest.mark.usefixtures("found")
def test_a_script_for_a_device(script, python):
    path = script(f"if __name__ == '__main__':\n    exec({DEVICE!r})\n{SPAWN}")
    output, errors = python("-m", "npu_lowering", "run", path, "one", "--two", "-h", code=1)
    assert output.startswith("([1.0, 1.0], 1, '__mp_main__')\n"), errors
    traceback = errors[errors.index("Traceback") :]
    assert "launcher" not in traceback
    assert "ValueError: to be seen" in traceback
    assert traceback.splitlines()[1].startswith(f'  File "{path}", line ')


RANK = """
import sys
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
x = torch.ones(2).npu()
dist.all_reduce(x)
print(x.tolist(), torch.npu.is_available(), sys.argv[1:])
dist.destroy_process_group()
"""


@pytest.mark.usefixtures("found")
def test_a_rank_that_torchrun_starts_has_the_device(script, python):
    free = "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"
    run = "-m", "npu_lowering", "run", "-m", "torch.distributed.run"
    output, errors = python(*run, *free, script(RANK), "one", "-h")
    assert output == "[1.0, 1.0] True ['one', '-h']\n"
    assert "found in sys.modules" not in errors


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("name", ["single_op", "graph_mode"])
def test_the_examples_of_the_interface_document(name, python):
    path = EXAMPLES / f"{name}.py"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the repository")
    pytest.importorskip("scipy", reason="the examples import scipy")
    python("-m", "npu_lowering", "run", path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, {"run", "doctor", "--version"}),
        (["run", "--help"], 0, {"SCRIPT", "python"}),
        (["doctor", "--help"], 0, {"versions,"}),
        (["run"], 2, {"required:", "SCRIPT"}),
        (["run", "-m"], 2, {"required:", "SCRIPT"}),
        (["run", "--fast", "script.py"], 2, {"--fast"}),
        ([], 2, {"required:", "COMMAND"}),
        (["sit"], 2, {"'sit'"}),
    ],
)
def test_the_command_line(arguments, code, words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == code
    output = capsys.readouterr()
    assert words <= set((output.err if code else output.out).replace("(", " ").split())


def test_what_cannot_be_done_is_said_in_a_sentence(script, monkeypatch, capsys):
    def prepare():
        raise OffDeviceError("torch_npu is not installed; install it")

    monkeypatch.setattr(launcher, "prepare", prepare)
    assert main(["run", str(script("print(1)"))]) == 1
    assert capsys.readouterr() == (
        "",
        "npu_lowering: error: torch_npu is not installed; install it\n",
    )
