"""Environments other than the one of CI: ``nox -s versions``, ``nox -s "versions(2.1.0)"``."""

import runpy
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import nox

TESTS = ("graphviz", "hypothesis", "pytest", "pytest-xdist", "scipy")
# What is advised to users, which is plain Python: torch and the torch_npu of its release.
ADVICE = runpy.run_path(str(Path(__file__).parent / "lowering" / "errors.py"))
PAIRS = {**ADVICE["PAIRS"], "2.13.0 alone": None}

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
    beside = ADVICE["requirements"](torch).values()
    session.install("--no-cache-dir", f"torch=={torch}", *beside, *TESTS)
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
