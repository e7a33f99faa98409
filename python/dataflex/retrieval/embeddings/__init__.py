"""Sentence encoders and the cache of what they have encoded.

Texts come in, unit vectors ``(n, d)`` go out.
May import ``models``, ``data``, ``config`` and what they may.
"""
