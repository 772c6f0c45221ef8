"""Every fused operation beside the limit of the device, the plain torch composition and the published form.

    OMP_WAIT_POLICY=passive python -m benchmarks.kernels --out docs/benchmarks     # this machine's CPU
    python -m benchmarks.kernels --profile --out docs/benchmarks                   # where the methods spend their time
    python -m benchmarks.kernels --device cuda --out docs/benchmarks               # a GPU, with the end-to-end part

The same as `vtoken bench kernels`, which has the options. Written to docs/benchmarks, the output is also pasted into
docs/kernels.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.pages import paste
from vtoken.cli.main import main

DOCS = Path(__file__).resolve().parents[1] / "docs"


if __name__ == "__main__":
    code = main(["bench", "kernels", *sys.argv[1:]])
    if code == 0 and any(Path(word).resolve() == DOCS / "benchmarks" for word in sys.argv[1:]):
        paste(DOCS / "kernels.md")
    sys.exit(code)
