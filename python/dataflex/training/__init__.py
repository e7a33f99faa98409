"""Training: the loop, its schedule, checkpoints, evaluation, trackers and what it leaves behind.

A model, datasets, a selector and arguments come in; an adapter, checkpoints and records go out.
May import ``selectors`` (their contract alone: the loop names none) and what they may.
"""
