"""`python -m bonaware` is the command `bonaware`."""

import sys

from bonaware.cli import main

if __name__ == "__main__":
    sys.exit(main())
