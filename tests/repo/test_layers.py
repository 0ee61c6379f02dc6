"""The layering is the project's point: who may import what is checked on the syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The client side of the lock manager: sockets, threads, processes.
IMPURE_DLM = {
    "__init__", "__main__", "answers", "asking", "caching", "callbacks", "client", "client_failures",
    "client_looking", "client_spaces", "demo", "fenced", "grant", "grants", "held", "lockspace", "lowlock",
    "runner", "session", "session_base", "status", "together", "transaction", "watch",
}  # fmt: skip
#: Everything above the I/O line: no socket, clock, randomness, thread, file, process.
PURE_VSYNC = [
    "core", "counting", "errors", "groups", "looking", "nodes", "quorum", "recorder", "roster", "section",
    "service", "types", "upper", "verbs", "wire", "wire_forming",
]  # fmt: skip
PURE = [
    *sorted((ROOT / "vsync/engine").glob("*.py")),
    *(ROOT / "vsync" / f"{name}.py" for name in PURE_VSYNC),
    *(
        path
        for path in sorted((ROOT / "dlm").glob("*.py"))
        if path.stem not in IMPURE_DLM
    ),
]
FORBIDDEN = {
    "asyncio", "io", "multiprocessing", "os", "pathlib", "random", "secrets", "select", "selectors", "signal",
    "socket", "structlog", "subprocess", "tempfile", "threading", "time", "uuid", "zmq",
}  # fmt: skip
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "id", "hash"}


def imported(path: Path) -> set[str]:
    """Every module a file imports, by its full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ("vsync", "dlm"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_vsync_never_imports_dlm() -> None:
    """A lock manager is one service of many; the ring does not know it."""
    for path in sorted((ROOT / "vsync").rglob("*.py")):
        guilty = {name for name in imported(path) if name.split(".")[0] == "dlm"}
        assert not guilty, f"{path} imports {guilty}"


@pytest.mark.parametrize("path", PURE, ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_modules_touch_nothing(path: Path) -> None:
    """The same inputs give the same outputs, always: that is how a failure replays from a seed."""
    guilty = {name for name in imported(path) if name.split(".")[0] in FORBIDDEN}
    assert not guilty, f"{path} imports {guilty}"
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & FORBIDDEN_CALLS, f"{path} calls {calls & FORBIDDEN_CALLS}"


@pytest.mark.parametrize("path", PURE, ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_modules_import_only_pure_modules(path: Path) -> None:
    """Purity is transitive."""
    pure = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in PURE}
    ours = {name for name in imported(path) if name.split(".")[0] in ("vsync", "dlm")}
    assert ours <= pure, f"{path} imports {ours - pure}"


def test_the_rule_bites() -> None:
    """The list is not empty, and the shell would fail it."""
    assert len(PURE) > 20
    assert imported(ROOT / "vsync/clock.py") & FORBIDDEN
