"""The exception of what needs TorchAIR, and what to install, said once.

Nothing of it imports torch. A command that is advised names distributions themselves, adds what is
missing, and never moves the torch that is installed: most releases of torch_npu pin a torch that
PyPI has not, such as 2.9.0+cpu, so torch_npu goes in without its dependencies.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable


class OffDeviceError(RuntimeError):
    """TorchAIR cannot be brought up on this machine; the message says why and what to do."""


PAIRS = {
    "2.1.0": "2.1.0.post17",
    "2.3.1": "2.3.1.post6",
    "2.4.0": "2.4.0.post4",
    "2.5.1": "2.5.1.post1",
    "2.6.0": "2.6.0.post5",
    "2.7.1": "2.7.1.post11",
    "2.8.0": "2.8.0.post5",
    "2.9.0": "2.9.0.post9",
    "2.10.0": "2.10.0.post7",
    "2.11.0": "2.11.0.post3",
    "2.12.0": "2.12.0.post3",
    "2.13.0": "2.13.0",
    "2.14.0": "2.14.0",
}
"""Each release of torch that the tests are run with, and the torch_npu for it."""
MAIN = "2.13.0"
"""The one of them that CI runs with, and that extras of this package install."""
_NONE_KNOWN = (
    f"no torch_npu is known to work beside that torch (one is for {', '.join(PAIRS)}); in an "
    "environment of its own run"
)


def release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version: ``2.1.0.post17`` and ``2.1.0+cpu`` are (2, 1, 0)."""
    numbers = []
    for part in version.split("+")[0].split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def requirements(torch: str) -> dict[str, str]:
    """What TorchAIR beside a torch needs, besides torch and torch_npu.

    Args:
        torch: A version of torch.

    Returns:
        For each module that is imported the requirement that brings it.
    """
    found = release(torch)
    needed = {
        "numpy": "numpy<2" if found < (2, 3) else "numpy",  # older torch is built against numpy 1
        "packaging": "packaging",
        "google.protobuf": "protobuf>=4",
        "yaml": "pyyaml",
    }
    if found < (2, 7):
        needed["pkg_resources"] = "setuptools<81"
    return needed


def torch_npu_for(torch: str) -> str | None:
    """The requirement of the torch_npu for a version of torch; None where none is known to work."""
    known = PAIRS.get(".".join(map(str, release(torch))))
    return None if known is None else f"torch_npu=={known}"


def add(wanted: Iterable[str]) -> str:
    """The command that adds requirements to an environment, and changes no torch in it."""
    wanted = list(wanted)
    options = ["--no-deps"] if any(each.startswith("torch_npu") for each in wanted) else []
    return shlex.join(["pip", "install", *options, *wanted])


def recipe(torch: str = MAIN) -> str:
    """The commands that put a known pair into a new environment.

    Args:
        torch: A release of torch that is in :data:`PAIRS`.
    """
    beside = add([f"torch_npu=={PAIRS[torch]}", *requirements(torch).values()])
    return f"pip install torch=={torch} && {beside}"


def missing(what: Collection[str], torch: str) -> str:
    """Say that modules are missing beside a torch, and what to do.

    Args:
        what: Modules, of :func:`requirements` or ``torch_npu``.
        torch: The version of the torch that is installed.
    """
    torch_npu = torch_npu_for(torch)
    names = {"torch_npu": torch_npu or "torch_npu", **requirements(torch)}
    wanted = [names[module] for module in what]
    short = " and ".join(each.split("=")[0].split("<")[0].split(">")[0] for each in wanted)
    is_or_are = "is" if len(wanted) == 1 else "are"
    sentence = f"{short} {is_or_are} not installed"
    if "torch_npu" in what and torch_npu is None:
        return f"{sentence} beside torch {torch}; {_NONE_KNOWN}: {recipe()}"
    return f"{sentence}; run: {add(wanted)}"


def module(name: str) -> str:
    """Say that a module is not installed, and what brings it where that is known."""
    brings = {**requirements("2.1"), **requirements(MAIN)}.get(name)
    sentence = f"the module {name}, not installed here"
    return sentence if brings is None else f"{sentence}; run: {add([brings])}"


def mismatch(torch: str, torch_npu: str) -> str:
    """Say that a torch_npu is for another release than the torch that is installed."""
    fitting = torch_npu_for(torch)
    advice = f"{_NONE_KNOWN}: {recipe()}" if fitting is None else f"run: {add([fitting])}"
    built_for = ".".join(map(str, release(torch_npu)))
    return (
        f"torch_npu {torch_npu} is built for torch {built_for}, but torch {torch} is installed; "
        f"{advice}"
    )


def is_known(torch: str, torch_npu: str) -> bool:
    """Whether a torch and a torch_npu are a pair that the tests are run with."""
    return torch_npu_for(torch) == f"torch_npu=={torch_npu}"
