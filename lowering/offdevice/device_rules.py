"""Rules (draft)."""

from __future__ import annotations
from typing import Any


def check_attributes(node: Any) -> None: ...
def check_call(call: Any) -> None: ...
