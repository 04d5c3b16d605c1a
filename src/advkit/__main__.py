"""`python -m advkit` is the command `advkit`."""

import sys

from advkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
