"""Count the tests of a suite, and list the skipped tests of all suites.

scripts/skips.py count NAME REPORT.xml   closing line of a pytest run; its skips to FOLDER/NAME.tsv
scripts/skips.py list                    every skip with its reason; exit 1 for one that is not expected

FOLDER is .cache/check/skips. Lines there: test, tab, reason; an empty reason: the test ran. A test that one suite skipped and
another one ran (on the other Seurat) was not skipped.
"""

from __future__ import annotations

import os
import re
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "check" / "skips"


def count(name: str, report: str) -> int:
    """Print the closing line of a pytest run, from its JUnit report."""
    try:
        cases = list(xml.parse(report).getroot().iter("testcase"))
    except (OSError, xml.ParseError):
        print(f"{name}: 0 passed, 1 failed, 0 skipped (pytest wrote no report)")
        return 1
    passed = failed = 0
    lines = []
    for case in cases:
        test = f"{case.get('classname', '').rpartition('.')[2] or case.get('name')}::{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif skipped is None or skipped.get("type") == "pytest.xfail":
            passed += 1
            lines.append(f"{test}\t")
        else:
            reason = skipped.get("message", "")
            if reason == "collection skipped":  # a whole module: ('file', line, 'Skipped: reason')
                reason = (skipped.text or "").partition("Skipped: ")[2].rstrip("')\"")
            lines.append(f"{test}\t{' '.join(reason.split()) or 'no reason given'}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.tsv").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{name}: {passed} passed, {failed} failed, {len(cases) - passed - failed} skipped")
    return int(failed > 0 or passed == 0)


def allowed() -> dict[re.Pattern[str], str]:
    """Expected reasons."""
    lines = (ROOT / "scripts" / "allowed_skips.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return {re.compile(pattern): why for pattern, why in pairs}


def listing() -> int:
    """Print every skip under its reason."""
    reasons: dict[str, str] = {}
    ran = set()
    for file in sorted(FOLDER.glob("*.tsv")):
        for line in file.read_text(encoding="utf-8").splitlines():
            test, _, reason = line.partition("\t")
            if reason:
                reasons[test] = reason
            else:
                ran.add(test)
    left = {test: reason for test, reason in reasons.items() if test not in ran}
    expected = allowed()
    unexpected = 0
    print(f"Skipped tests: {len(left)}")
    for reason in sorted(set(left.values())):
        tests = sorted(test for test in left if left[test] == reason)
        why = next((why for pattern, why in expected.items() if pattern.search(reason)), None)
        unexpected += 0 if why else len(tests)
        print(f"  {reason} ({why or 'NOT EXPECTED, see scripts/allowed_skips.tsv'})")
        for test in tests:
            print(f"    {test}")
    if unexpected and os.environ.get("CI"):
        print(
            f"{unexpected} of them for reasons that are not expected: this fails in continuous integration"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(count(*sys.argv[2:]) if sys.argv[1] == "count" else listing())
