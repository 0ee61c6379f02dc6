"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rewrite``: write the transcripts anew."""
    parser.addoption("--rewrite", action="store_true", help="write the transcripts anew; read the diff")
