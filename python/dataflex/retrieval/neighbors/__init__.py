"""Nearest neighbours: exact by blocked products, or by HNSW with a measured recall.

Vectors come in, the positions ``(q, max_K)`` of the nearest go out.
May import ``utils``, ``types`` and ``errors``.
"""
