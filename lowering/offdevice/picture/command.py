"""``python -m npu_lowering graph SCRIPT``: what a script lowers, as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from npu_lowering.errors import OffDeviceError
from npu_lowering.offdevice import probe
from npu_lowering.offdevice.engine import recorder
from npu_lowering.offdevice.engine.graph import Graph
from npu_lowering.offdevice.picture.model import picture
from npu_lowering.offdevice.process import launcher

KINDS = (".html", ".dot", ".svg", ".png")
_DRAWN = (".svg", ".png")  # by Graphviz


def main(script: str, arguments: Sequence[str], output: str, *, every: bool) -> int:
    """Run a script off the device, and draw what it lowered.

    The picture is drawn as well where the script ends by an exception or ``sys.exit``, which goes
    on afterwards.

    Args:
        script: Path of a Python file.
        arguments: The script's own arguments.
        output: The file to write; its ending says what is written.
        every: Every graph, and not only the last.

    Returns:
        The script's exit code, or 1 if it lowered no graph.

    Raises:
        OffDeviceError: It is not possible here, or not into this file; the message says why.
    """
    path = Path(output)
    _check(path)  # first, since the script may take long
    path = path.absolute()  # the script may change the working directory
    with recorder.recording() as recording:
        try:
            code = launcher.run(script, arguments)
        except BaseException:
            if recording.graphs:
                _write(recording.graphs, path, script, every)
            raise
    if recording.graphs:
        _write(recording.graphs, path, script, every)
    elif code == 0:
        raise OffDeviceError(
            f"{script} lowered no graph, so there is nothing to draw: it has to call a model that "
            "is compiled with torchair.get_npu_backend()"
        )
    return code


def save(graphs: Sequence[Graph], path: Path, title: str) -> list[Path]:
    """Draw graphs into a file, or, where it holds only one, into numbered files beside it.

    Args:
        graphs: At least one, for example ``[offdevice.last_graph()]``.
        path: ``.html`` holds any number; ``.dot``, ``.svg`` and ``.png`` hold one.
        title: The heading of an HTML page.

    Returns:
        The files written.

    Raises:
        OffDeviceError: The ending is another, or what draws it is not here.
    """
    _check(path)
    pictures = [picture(graph) for graph in graphs]
    if path.suffix == ".html":
        from npu_lowering.offdevice.picture import html

        path.write_text(html.page(pictures, title), encoding="utf-8")
        return [path]
    from npu_lowering.offdevice.picture import dot

    paths = [path]
    if len(pictures) > 1:
        numbers = range(1, len(pictures) + 1)
        paths = [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in numbers]
    for each, to in zip(pictures, paths):
        if path.suffix in _DRAWN:
            to.write_bytes(dot.drawn(each, path.suffix[1:]))
        else:
            to.write_text(dot.dot(each), encoding="utf-8")
    return paths


def _check(path: Path) -> None:
    if path.suffix not in KINDS:
        raise OffDeviceError(
            f"the picture's name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {path}"
        )
    if not path.parent.is_dir():
        raise OffDeviceError(f"there is no folder {path.parent}, where {path.name} is to be put")
    if path.suffix in _DRAWN:
        from npu_lowering.offdevice.picture import dot

        dot.check()
    real = probe.real_cann()
    if real is not None:
        raise OffDeviceError(
            f"a real CANN is here ({real} loads), which takes the graph before it can be seen; "
            "draw it where there is none"
        )


def _write(graphs: Sequence[Graph], path: Path, script: str, every: bool) -> None:
    shown = graphs if every else graphs[-1:]
    title = f"{Path(script).name}: what TorchAIR lowered"
    for file in save(shown, path, title):
        sys.stdout.write(f"{file}\n")
    for graph in shown:
        sys.stdout.write(f"  {picture(graph)}\n")
    if len(shown) < len(graphs):
        sys.stderr.write(f"npu_lowering: this is the last of {len(graphs)} graphs; see --all\n")
