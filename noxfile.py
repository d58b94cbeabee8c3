"""Environments other than the one of CI: ``nox -s oldest``."""

import nox

TESTS = ("hypothesis", "pytest", "pytest-xdist", "scipy")
# What torch_npu 2.1 imports and does not declare; pkg_resources left setuptools with 81.
TORCHAIR = ("packaging", "protobuf", "pyyaml", "setuptools<81")

nox.options.default_venv_backend = "venv"


@nox.session(python="3.11")
def oldest(session):
    """The suite on the oldest pair of torch and torch_npu; torch is a CUDA build of 5 GB."""
    session.install("torch==2.1.0", "numpy<2", *TESTS, *TORCHAIR)
    session.install("--no-deps", "torch_npu==2.1.0.post17")
    session.install("--no-deps", ".")
    session.run("python", "-m", "pytest", *session.posargs)
