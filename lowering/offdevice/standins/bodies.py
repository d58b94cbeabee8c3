"""What each stand-in function does: the honest answer of a machine without a device.

C functions that report errors return one. C functions that return a pointer or a size return
none. Everything else, C++ above all, cannot say no: it prints a sentence and stops the process,
since a made-up return value would end in a crash that names nothing. Only what C++ registers while
a library is loaded is taken in silence.
"""

from __future__ import annotations

import re

from npu_lowering.offdevice.probe import MARK
from npu_lowering.offdevice.standins.machine_code import Body, Return, ReturnText, Stop, StoreZero

_NO_DEVICE = "npu-lowering: there is no CANN and no NPU on this machine, only stand-ins for it"

# The first pattern that the whole name matches decides. Codes are those of the CANN headers.
_RULES: tuple[tuple[str, Body], ...] = (
    ("aclrtGetDeviceCount", StoreZero()),
    ("aclGetRecentErrMsg", ReturnText(_NO_DEVICE)),
    # Return a status although their names are like those of the next line.
    ("aclGetTensorDescDimV2|acltdtGetDimsFromItem", Return(200001)),
    # Return a pointer, a size, an enumerator or a time, and no status.
    (
        "acl(op|tdt|mdl)?Create.*|acltdtGet.*|aclGet(TensorDesc|DataBuffer).*"
        "|aclGetCompileoptSize|aclrtGetSocName|Msprof(SysCycleTime|GetHashId)",
        Return(0),
    ),
    ("acl.*", Return(200001)),  # ACL_ERROR_API_NOT_SUPPORT
    ("rt[A-Z].*", Return(207000)),  # ACL_ERROR_RT_FEATURE_NOT_SUPPORT
    ("Hccl.*", Return(5)),  # HCCL_E_NOT_SUPPORT
    ("Msprof.*", Return(-1)),
    (".*printf_s", Return(-1)),  # the bounded C functions: how printf says no,
    (".*_s", Return(22)),  # and how the rest do, EINVAL
)
# The constructor of an empty class, which torch_npu 2.5 calls for operators of its own while it is
# loaded; nobody asks for them here.
_REGISTERS = "_ZN2ge23OperatorCreatorRegisterC[12]E.*"


def body_of(symbol: str) -> Body:
    """The body of the stand-in for ``symbol``."""
    if symbol == MARK:
        return Return(1)
    if re.fullmatch(_REGISTERS, symbol):
        return Return(0)
    if not symbol.startswith("_Z"):
        for pattern, body in _RULES:
            if re.fullmatch(pattern, symbol):
                return body
    return Stop(
        f"npu-lowering: {readable(symbol)} was called, which needs the CANN software of an NPU; "
        f"on this machine there is only a stand-in that cannot do it, so the process stops here "
        f"(symbol {symbol})"
    )


def readable(symbol: str) -> str:
    """A mangled C++ name as a reader knows it, without its parameters: ``ge::Graph::Graph``.

    What is not understood is left as it is.
    """
    match = re.match(r"_ZN?[KVrRO]*(?=\d)", symbol)
    if match is None:
        return symbol
    rest, parts = symbol[match.end() :], []
    while True:
        length = re.match(r"\d+", rest)
        if length is None:
            break
        end = length.end() + int(length[0])
        parts.append(rest[length.end() : end])
        rest = rest[end:]
    if re.match(r"C[123]", rest):
        parts.append(parts[-1])
    elif re.match(r"D[012]", rest):
        parts.append(f"~{parts[-1]}")
    return "::".join(parts)
