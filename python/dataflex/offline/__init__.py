"""Selection without training: from Python, from a configuration, over checkpoints, and what it would cost.

A model (and checkpoints) and rows come in, a subset with the scores of all rows goes out.
May import ``training`` and what it may.
"""
