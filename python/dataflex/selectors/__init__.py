"""Selectors: each one decides which candidates the next phase trains on; one file (or folder) a method.

A context (model, data, optimizer, how many) comes in, a ``Selection`` goes out.
May import ``gradients``, ``retrieval``, ``rewards``, ``rollouts`` and what they may; a selector knows no loop.
"""
