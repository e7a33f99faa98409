"""Gradients of single samples and prompts: batched rules and plain passes, moments, features, their store, scores.

A model in its current state, tokenised samples or weighted answers come in; features, similarities and scores go out.
May import ``projection``, ``models``, ``data`` and what they may; it knows no selector.
"""
