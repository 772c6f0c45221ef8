"""`python -m vtoken` is the `vtoken` command."""

import sys

from vtoken.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
