"""Programs that the tests run in a process of their own."""

from pathlib import Path

import npu_lowering

# A child that is to load libraries, and needs no torch for it, starts without the package's own
# start-up: a tenth of a second instead of two.
LIGHT = f"""
import sys, types
package = types.ModuleType("npu_lowering")
package.__path__ = [{str(Path(npu_lowering.__file__).parent)!r}]
sys.modules["npu_lowering"] = package
"""
