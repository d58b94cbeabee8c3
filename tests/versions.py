"""Which torch the tests run on."""

import npu_lowering  # noqa: F401  isort: skip -- before torch, as everywhere in the tests

import torch

TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
