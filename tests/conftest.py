"""Options of the whole suite."""

from __future__ import annotations

import signal

import pytest

SEEDS = "seeds"  #: the property of a test's report that says which seeds it ran (``tests/seeds.py``)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rewrite``: write the transcripts anew."""
    parser.addoption("--rewrite", action="store_true", help="write the transcripts anew; read the diff")


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C works in all that tests start, also where a shell began this in the background, with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which seeds were simulated, also when all went well: whoever reads a log can run them again."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]
    lines = [str(value) for r in reports if r.when == "call" for name, value in r.user_properties if name == SEEDS]
    if lines:
        terminalreporter.section("simulated")
        for line in lines:
            terminalreporter.line(line)
