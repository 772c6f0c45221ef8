"""The reference model: a small video QA model that ships with the package, its data generator and its training."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
