"""`make audit`: known vulnerabilities of the installed packages.

A package that the vulnerability service does not answer for is not checked, and pip-audit passes it as if it were.
So it is counted here, and said aloud; only what is known to be vulnerable fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

_NAMED = 5


def main() -> int:
    """The exit status: 1 if a package is known to be vulnerable."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip_audit",
            "--local",
            "--format=json",
            "--progress-spinner=off",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        why = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        print(aloud(f"no package was checked for known vulnerabilities: {why}"))
        return 0
    found = list(vulnerabilities(packages))
    print(*found, coverage(packages), sep="\n")
    return int(bool(found))


def vulnerabilities(packages: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each vulnerability in pip-audit's report."""
    for package in packages:
        for known in package.get("vulns", ()):
            fixed = ", ".join(known["fix_versions"]) or "no version yet"
            yield f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}"


def coverage(packages: list[dict[str, Any]]) -> str:
    """How many packages the service answered for, and which it did not."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if not skipped:
        return f"{len(packages)} packages were checked for known vulnerabilities"
    named = ", ".join(skipped[:_NAMED]) + (" ..." if len(skipped) > _NAMED else "")
    return aloud(
        f"{len(skipped)} of {len(packages)} packages were not checked for known vulnerabilities, "
        f"since the service does not know them or is out of reach: {named}"
    )


def aloud(warning: str) -> str:
    """A warning that nobody overlooks in the output of a build."""
    rule = "!" * 78
    return f"{rule}\nWARNING: {warning}\n{rule}"


if __name__ == "__main__":
    sys.exit(main())
