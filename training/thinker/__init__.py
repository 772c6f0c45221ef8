"""Fine-tuning of the QA model to the hand set."""
