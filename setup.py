"""Builds the compiled kernel: a plain shared library, which ctypes loads, and no Python module.

It is optional: without a C compiler the package installs and works, only slower. All else is in
pyproject.toml.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

if sys.version_info < (3, 10):
    # The pips that come with older Pythons look at requires-python last, after gigabytes of torch.
    sys.exit(f"npu-lowering needs Python 3.10 or newer, this is {sys.version.split()[0]}")

CSRC = Path("lowering", "csrc")


class BuildLibrary(build_ext):
    """One file for every Python, in a folder that is no package: it is no module to import."""

    def get_ext_filename(self, fullname):
        """The path of the library below the packages."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3."""

    def get_tag(self):
        """The wheel's tags: Python, its ABI, the platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
    ext_modules=[
        Extension(
            "npu_lowering.csrc.libgrouped_matmul",
            sources=[str(CSRC / "grouped_matmul.c")],
            depends=sorted(map(str, CSRC.glob("*.h"))),
            # -ffp-contract=off keeps every float rounding where it is.
            extra_compile_args=[
                "-std=c11",
                "-O3",
                "-ffp-contract=off",
                "-fvisibility=hidden",
                "-pthread",
            ],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
