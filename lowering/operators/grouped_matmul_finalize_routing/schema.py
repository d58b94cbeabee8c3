"""What the codes among the operator's scalars mean."""

from __future__ import annotations

# group_list_type
TOTALS = 0
COUNTS = 1
