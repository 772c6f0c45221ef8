"""Training of the video QA model."""
