"""What the tests start that pip does not have: where it is missing, they are skipped, and the end of a run says so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[1] / "requirements" / "debian.txt"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_MARK = "needs Debian's "


def command(name: str) -> str:
    """Where a command of `requirements/debian.txt` is; skips the test that asks for one that is missing."""
    return shutil.which(name, path=_PATH) or without(package_of(name))


def package_of(name: str) -> str:
    """The package that brings a command."""
    lines = PACKAGES.read_text().splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#"))
    return next(package for package, brings in pairs if brings == name)


def without(package: str) -> str:
    """Skips a test for want of a package."""
    pytest.skip(f"{_MARK}{package}")


def list_what_was_not_run(terminalreporter: pytest.TerminalReporter) -> None:
    """Says aloud what was not run."""
    missing = _missing(terminalreporter)
    if missing:
        terminalreporter.section("NOT RUN", sep="!", red=True, bold=True)
        for package, count in sorted(missing.items()):
            terminalreporter.line(f"{count} tests need Debian's {package}, which is not installed")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where a machine reads the exit status, nobody reads the list."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and os.environ.get("CI") and _missing(reporter) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _missing(reporter: pytest.TerminalReporter) -> dict[str, int]:
    """Tests that were not run, by the package that they need."""
    found: dict[str, int] = {}
    for report in reporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if _MARK in reason:
            package = reason.partition(_MARK)[2]
            found[package] = found.get(package, 0) + 1
    return found
