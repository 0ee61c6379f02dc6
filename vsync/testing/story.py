"""The last events before a violation, one column per node."""

from __future__ import annotations

from collections.abc import Sequence

from vsync.testing.trace import Delivered, Event, Frame, Sent, Trace

__all__ = ["story"]


def story(trace: Trace, nodes: int, lines: int = 60, frames: bool = False) -> list[str]:
    """The last ``lines`` lines of the trace; runs of deliveries of one node are drawn together."""
    rows = _rows(list(trace.events), frames)[-lines:]
    width = max(22, min(44, 180 // max(nodes, 1)))
    head = "time ms".rjust(11) + "  " + "".join(f"node {n}".ljust(width) for n in range(1, nodes + 1))
    return [head.rstrip()] + [_row(time, node, text, width, nodes) for time, node, text in rows]


def _rows(events: Sequence[Event], frames: bool) -> list[tuple[int, int, str]]:
    """(time, node, text); what the nodes send and deliver between two other events is drawn together."""
    rows: list[tuple[int, int, str]] = []
    pending: dict[tuple[str, int], list[Event]] = {}

    def flush() -> None:
        for batch in pending.values():
            first, last = batch[0], batch[-1]
            text = first.text() if first is last else f"{first.text()} .. {last.text()} ({len(batch)})"
            rows.append((first.time, first.who.node, text))
        pending.clear()

    for event in events:
        if isinstance(event, Frame) and not frames:
            continue
        if isinstance(event, (Delivered, Sent)):
            pending.setdefault((type(event).__name__, event.who.node), []).append(event)
            continue
        flush()
        rows.append((event.time, event.who.node, event.text()))
    flush()
    return rows


def _row(time: int, node: int, text: str, width: int, nodes: int) -> str:
    return f"{time / 1000:11.3f}  " + " " * (width * (node - 1)) + text
