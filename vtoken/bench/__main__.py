"""`python -m vtoken.bench` is `vtoken bench`."""

import sys

from vtoken.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
