"""Random operators lower without a device, by torch's own seed."""

import pytest
import torch
from torch.nn import functional
from versions import TORCH

from npu_lowering import offdevice

CASES = {
    "dropout": lambda x: functional.dropout(x, 0.5),
    "rand": lambda x: x + torch.rand(4),
    "randn": lambda x: x + torch.randn(4, 4),
    "bernoulli": lambda x: torch.bernoulli(x * 0.5),
    "uniform_": lambda x: x.clone().uniform_(),
    "multinomial": lambda x: torch.multinomial(x, 1),
    "randperm": lambda x: x[torch.randperm(4)],
}


@pytest.fixture(autouse=True)
def _installed(torchair):
    del torchair
    torch._dynamo.reset()


def seed_of(graph):
    (node,) = [node for node in graph.nodes if node.name.startswith("initial_seed")]
    return node.attrs["value"].item()


@pytest.mark.parametrize("function", CASES.values(), ids=CASES)
def test_it_lowers(function):
    if TORCH < (2, 13):
        pytest.skip("the converters of older releases are others")
    torch.manual_seed(3)
    graph = offdevice.lower(function, torch.ones(4, 4))
    assert seed_of(graph) == 3
    types = {node.type for node in graph.nodes}
    assert any(name.startswith(("Stateless", "Multinomial")) for name in types), types


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-7, -7), ((1 << 63) + 5, 5 - (1 << 63))])
def test_every_seed_of_torch_is_one(seed, expected):
    torch.manual_seed(seed)
    assert seed_of(offdevice.lower(CASES["dropout"], torch.ones(4, 4))) == expected


def test_the_generator_counts_from_each_seed():
    from npu_lowering.offdevice.process import randomness

    generator = randomness.Generator()
    torch.manual_seed(1)
    generator.set_offset(8)
    assert generator.get_offset() == 8
    torch.manual_seed(2)
    assert (generator.initial_seed(), generator.get_offset()) == (2, 0)
