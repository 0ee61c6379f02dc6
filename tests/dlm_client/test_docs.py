"""Every snippet of the pages on locks, page by page in order, over a node in this process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import vsync
from dlm.plugin import service
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub

DOCS = Path(__file__).parents[2] / "docs"
#: And how many snippets there are at least.
PAGES = {
    "asyncio.md": 5, "failures.md": 3, "fencing.md": 6, "locks.md": 10, "lockspace.md": 7, "lockspaces.md": 7,
    "looking.md": 2, "recipes.md": 13, "storms.md": 1,
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_the_page_runs(page: str) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) >= PAGES[page]
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as node:
        names: dict[str, Any] = {"node": node}
        for number, snippet in enumerate(snippets, 1):
            exec(compile(snippet, f"{page}, snippet {number}", "exec"), names)
