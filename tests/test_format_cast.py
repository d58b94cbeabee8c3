"""What the generic tests cannot see of npu_format_cast: the format that a copy has."""

import pytest
import torch

import npu_lowering  # noqa: F401 -- defines the operators
from npu_lowering.operators.storage_format import format_of


@pytest.mark.parametrize("acl_format", [2, 29, 50])
def test_a_copy_has_the_format_of_what_it_is_like(acl_format):
    source = torch.ops.npu.npu_format_cast(torch.zeros(3, 4), acl_format)
    given = torch.ones(2, 3, 4)
    copy = torch.ops.npu.npu_format_cast.Tensor(given, source)
    assert (format_of(copy), format_of(given)) == (acl_format, 2)
