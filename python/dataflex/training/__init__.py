"""Training: the loop, its checkpoints, evaluation, trackers and what it leaves behind.

A model, datasets, a curriculum's parts and arguments come in; an adapter, checkpoints and records go out.
May import ``curriculum`` and what it may; the loop names no selector.
"""
