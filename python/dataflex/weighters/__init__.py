"""Weighters: how much each sample of a step counts, a file a method.

The global batch of a step comes in, with losses and states of its samples where they are asked for; weights go out.
May import ``models`` and what it may; a weighter knows no loop, and no selector or mixer.
"""
