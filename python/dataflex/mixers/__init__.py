"""Mixers: which share of the next phase each domain of the data gets, a file a method.

A context (model, data, domains, losses of the phase before) comes in, proportions go out.
May import ``models`` and what it may; a mixer knows no loop, and no selector or weighter.
"""
