"""Every fused operation beside the limit of the device, the plain torch composition and the published form.

    OMP_WAIT_POLICY=passive python benchmarks/kernels.py --out docs/benchmarks     # this machine's CPU
    python benchmarks/kernels.py --device cuda --out docs/benchmarks               # a GPU, with the end-to-end part

The same as `vtoken bench kernels`, which has the options.
"""

from __future__ import annotations

import sys

from vtoken.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "kernels", *sys.argv[1:]]))
