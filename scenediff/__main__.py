"""`python -m scenediff` is the command `scenediff`; launchers of several processes start it so."""

import sys

from scenediff.cli import main

if __name__ == "__main__":
    sys.exit(main())
