"""``python -m vsync``: the ``vsync`` command."""

from vsync.cli import main

main()
