"""``python -m cifarkit``: see :mod:`cifarkit.commands`."""

import sys

from cifarkit.commands import main

if __name__ == "__main__":
    sys.exit(main())
