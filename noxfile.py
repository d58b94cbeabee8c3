"""Environments other than the one of CI: ``nox -s versions``, ``nox -s "versions(2.1.0)"``."""

import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import nox

TESTS = ("graphviz", "hypothesis", "pytest", "pytest-xdist", "scipy")
# What torch_npu imports and does not declare; pkg_resources left setuptools with 81.
TORCHAIR = ("packaging", "protobuf", "pyyaml", "setuptools<81")
# torch and the torch_npu of its release; the oldest are CUDA builds of 5 GB.
PAIRS = {
    "2.1.0": "2.1.0.post17",
    "2.3.1": "2.3.1.post6",
    "2.4.0": "2.4.0.post4",
    "2.5.1": "2.5.1.post1",
    "2.6.0": "2.6.0.post5",
    "2.7.1": "2.7.1.post11",
    "2.8.0": "2.8.0.post5",
    "2.9.0": "2.9.0.post9",
    "2.10.0": "2.10.0.post7",
    "2.11.0": "2.11.0.post3",
    "2.12.0": "2.12.0.post3",
    "2.13.0": "2.13.0",
    "2.13.0 alone": None,
    "2.14.0": "2.14.0",
}

NOT_FINISHED = "<testsuites />"

nox.options.default_venv_backend = "venv"


@nox.session(python="3.11")
@nox.parametrize("pair", [nox.param(pair, id=pair) for pair in PAIRS])
def versions(session, pair):
    """The suite on a torch and its torch_npu; then the table of every pair run so far."""
    results = Path(session.cache_dir, "versions")
    results.mkdir(parents=True, exist_ok=True)
    result = results / f"{pair}.xml"
    result.write_text(NOT_FINISHED)
    try:
        _install(session, pair.split()[0], PAIRS[pair])
        session.run(
            "python", "-m", "pytest", f"--junit-xml={result}", *(session.posargs or ["-n", "auto"])
        )
    finally:
        table = _table(results)
        results.with_suffix(".md").write_text(table)
        session.log(f"so far, in {results.with_suffix('.md')}:\n{table}")
    # Gigabytes. A failed pair's stay, to be looked into: nox -r -s "versions(2.1.0)".
    shutil.rmtree(session.virtualenv.location)


def _install(session, torch, torch_npu):
    """Nothing of it is kept in pip's cache, which would double the gigabytes."""
    numpy = "numpy<2" if torch.startswith("2.1.") else "numpy"
    session.install("--no-cache-dir", f"torch=={torch}", numpy, *TESTS, *TORCHAIR)
    if torch_npu is not None:
        session.install("--no-cache-dir", "--no-deps", f"torch_npu=={torch_npu}")
    session.install("--no-deps", ".")


def _table(results):
    """Markdown: a row for each pair that has a result, the reasons of its skips counted."""
    rows = ["| torch | torch_npu | passed | failed | skipped |", "|---|---|---|---|---|"]
    for pair, torch_npu in PAIRS.items():
        path = results / f"{pair}.xml"
        if path.exists():
            cells = pair.split()[0], torch_npu or "none", *_outcomes(path.read_text())
            rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _outcomes(junit):
    if junit == NOT_FINISHED:
        return "did not finish", "", ""
    passed, failed, skipped = 0, 0, Counter()
    for case in ET.fromstring(junit).iter("testcase"):  # noqa: S314 -- pytest wrote it
        skip = case.find("skipped")
        if skip is not None:
            reason = skip.get("message").partition(". ")[0]  # its first sentence
            skipped[reason.replace("|", r"\|")] += 1
        elif case.find("failure") is None and case.find("error") is None:
            passed += 1
        else:
            failed += 1
    reasons = [f"{count}: {reason}" for reason, count in skipped.most_common()]
    return passed, failed, "<br>".join(reasons) or 0
