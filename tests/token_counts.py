"""Calls whose output_bs is the number of tokens, as models make them, for many numbers of them."""

import torch
from cases import call

COUNTS = range(7, 24)  # seventeen of them, and none that another size of the call has as well


def tokens(count, made=call, **kwargs):
    """A tensor with a row for each token, and a call with four rows of x for each."""
    weight = kwargs.pop("shared_input_weight", None)
    kwargs = {"shared_input_offset": 0, "shared_rows": 1, **kwargs}
    counts = (count, 0, count, 2 * count - 1)
    case = made(m=4 * count, counts=counts, output_bs=count, **kwargs)
    del case["output_bs"]
    if weight is None:  # torch traces anew with a float of the caller's that is used as a number
        del case["shared_input_weight"]
    else:
        case["shared_input_weight"] = weight
    return torch.ones(count, 3), case
