"""``python -m vsync.testing --seed 7 --nodes 5``: replay a seed; ``--seeds 1..500``: hunt."""

import sys

from vsync.testing.main import main
from vsync.testing.plugin import no_plugins

if __name__ == "__main__":
    sys.exit(main(None, "vsync.testing", no_plugins))
