"""``python -m npu_lowering``: run | graph | doctor."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from npu_lowering.errors import OffDeviceError
from npu_lowering.version import __version__


def main(argv: Sequence[str]) -> int:
    """Do what the command line says.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        The exit code.
    """
    if argv[:1] == ["graph"]:
        # Options of ours may follow the script here; what is not ours, or follows --, is its own.
        end = argv.index("--") if "--" in argv else len(argv)
        arguments, rest = _parser().parse_known_args(argv[:end])
        rest += argv[end + 1 :]
    else:
        # What follows the script is the script's, whatever it looks like.
        own = len(argv)
        if argv[:2] == ["run", "-m"]:
            own = 3
        elif argv[:1] == ["run"] and not "".join(argv[1:2]).startswith("-"):
            own = 2
        arguments, rest = _parser().parse_args(argv[:own]), list(argv[own:])
    try:
        if arguments.command == "graph":
            from npu_lowering.offdevice.picture import command

            return command.main(arguments.script, rest, arguments.output, every=arguments.all)
        if arguments.command == "run":
            from npu_lowering.offdevice.process import launcher

            if arguments.module:
                return launcher.run_module(arguments.script, rest)
            return launcher.run(arguments.script, rest)
        from npu_lowering.offdevice import doctor

        return doctor.shell() if arguments.env else doctor.main()
    except OffDeviceError as error:
        sys.stderr.write(f"npu_lowering: error: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m npu_lowering",
        description="npu_grouped_matmul_finalize_routing without an NPU.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="run a script for an NPU, unchanged, on the CPU",
        usage="python -m npu_lowering run [-h] (SCRIPT | -m MODULE) [ARGS ...]",
        description="Run SCRIPT, or MODULE as python -m does, on a machine without an NPU. "
        "torch_npu and torchair are there, compiled graphs are lowered and executed on the CPU, "
        "and .npu(), .to('npu') and device='npu' mean the CPU. Exit code, traceback, standard "
        "input and signals are as of python SCRIPT ARGS. On a machine with CANN, SCRIPT runs as "
        "it is.",
    )
    run.add_argument("-m", dest="module", action="store_true", help="run a module, not a file")
    run.add_argument("script", metavar="SCRIPT", help="a Python file; what follows is its own")
    graph = commands.add_parser(
        "graph",
        help="run a script and draw the graph that it lowers",
        usage="python -m npu_lowering graph [-h] [-o FILE] [--all] SCRIPT [ARGS ...]",
        description="Run SCRIPT as `run` does, and draw the GE graph that it lowered last, the "
        "fused operator emphasised. What is no option of ours is SCRIPT's, and so is everything "
        "after --. Exit code and traceback are SCRIPT's; it is 1 where no graph was lowered.",
        allow_abbrev=False,
    )
    graph.add_argument("script", metavar="SCRIPT", help="a Python file")
    graph.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="graph.html",
        help="what to write, %(default)s if not given: .html needs nothing to be drawn or read, "
        ".dot is text for Graphviz, .svg and .png are drawn by it (pip install "
        "graphviz, and its program dot)",
    )
    graph.add_argument(
        "--all",
        action="store_true",
        help="every graph: in one page, or in FILE-1, FILE-2, ...",
    )
    doctor = commands.add_parser(
        "doctor",
        help="say what is installed, who registered what, and what to do about each problem",
        description="Print versions, the state of the environment, what is registered by whom, "
        "where the stand-in libraries are, and for each problem the one thing to do. The exit "
        "code is 0 if graphs can be lowered on this machine, else 1.",
    )
    doctor.add_argument(
        "--env",
        action="store_true",
        help="print only what a shell has to set so that import torch works by itself, for "
        "example into a virtual environment: doctor --env >> .venv/bin/activate",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
