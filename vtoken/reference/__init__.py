"""The reference model: a small video QA model that ships with the package, its data generator and its training."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # of the video QA model, written by training.reference.train
VJEPA = Path(__file__).parent / "vjepa"  # of a small V-JEPA 2, written by training.vjepa.pretrain
