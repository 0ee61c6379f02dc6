"""``python -m dlm.testing --seed 7 --nodes 5``: the simulator of ``vsync.testing`` with the lock workload."""

import sys

from dlm.testing.workload import lock_plugins
from vsync.testing.main import main

if __name__ == "__main__":
    sys.exit(main(None, "dlm.testing", lock_plugins))
