"""Every snippet of docs/locks.md, in order, over a node in this process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import vsync
from dlm.plugin import service
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub

PAGE = Path(__file__).parents[2] / "docs/locks.md"


def test_every_snippet_of_the_page_runs() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 9
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as node:
        names: dict[str, Any] = {"node": node}
        for number, snippet in enumerate(snippets, 1):
            exec(compile(snippet, f"locks.md, snippet {number}", "exec"), names)
