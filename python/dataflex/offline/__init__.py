"""Selection without training: from Python, from a configuration, over checkpoints, and what it would cost."""
