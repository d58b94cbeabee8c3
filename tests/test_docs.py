"""The pages quote messages that exist, and snippets and links that hold."""

import re
from pathlib import Path

import pytest
from errors import ERRORS, VALUE_ERRORS

ROOT = Path(__file__).parent.parent
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), flags=re.M)
OURS = ("From the operator", "From lowering", "From the environment")
# Messages of torch, torch_npu and TorchAIR, which are quoted as they print them.
THEIRS = ("(TorchAIR)", "Failed to load the backend", "libhccl.so", "anything else")


def quoted():
    for section in SECTIONS[1:]:
        if section.startswith(OURS):
            for line in section.splitlines():
                if line.startswith("| ") and not any(text in line for text in THEIRS):
                    yield from re.findall(r"`([^`]+)`", line.split("|")[1])


def sources():
    """Every message, as it is written: adjacent literals joined."""
    folders = ("lowering", "lowering/offdevice", "converters")
    text = "".join(
        path.read_text(encoding="utf-8") for f in folders for path in (ROOT / f).glob("*.py")
    )
    messages = [bad.message for bad in {**ERRORS, **VALUE_ERRORS}.values()]
    return re.sub(r'"\s*\n\s*f?"', "", text) + "\n".join(messages)


@pytest.mark.parametrize("text", [*quoted()])
def test_quoted_messages_exist(text):
    for part in text.split("..."):
        assert part.strip() in sources(), part


def test_there_are_messages_to_check():
    assert len([*quoted()]) > 15


@pytest.mark.parametrize(
    "page", ["README.md", "README.zh-CN.md", "docs/errors.md", "docs/numerics.md"]
)
def test_links_hold(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
