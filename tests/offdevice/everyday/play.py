"""Runs every snippet in this process and writes what came out, as JSON.

``python play.py STATE OUTPUT [NAME ...]``. In the states plain and install it does what its name
says first; the state run is what ``python -m npu_lowering run`` makes.
"""

import json
import sys
import warnings
from pathlib import Path

STATE = sys.argv[1] if len(sys.argv) > 2 else ""  # in a child that was spawned, too

if STATE == "install":
    from npu_lowering import offdevice

    offdevice.install()

import snippets  # noqa: E402
import torch  # noqa: E402


def said(value):
    """A value in words, floats with all their digits."""
    if isinstance(value, torch.Tensor):
        if value.is_sparse:
            value = value.to_dense()
        return [
            "tensor",
            str(value.dtype),
            str(value.device),
            list(value.shape),
            said(value.tolist()),
        ]
    if isinstance(value, dict):
        return [[said(key), said(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple, torch.Size)):
        return [said(item) for item in value]
    return repr(value)


def play(names):
    results = {}
    for name in names:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                outcome = said(snippets.SNIPPETS[name]())
            except Exception as error:  # noqa: BLE001 -- a failure is an outcome, too
                outcome = ["raised", type(error).__name__, str(error)]
        heard = sorted({f"{w.category.__name__}: {w.message}" for w in caught})
        results[name] = {"outcome": outcome, "warnings": heard}
    return results


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(play(sys.argv[3:] or list(snippets.SNIPPETS))))
