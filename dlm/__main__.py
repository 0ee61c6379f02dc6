"""``python -m dlm`` is ``dlm``."""

import sys

from dlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
