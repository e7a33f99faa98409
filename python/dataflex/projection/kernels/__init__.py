"""Kernels of the projection: each a specification in plain torch beside its native form, bit for bit the same.

Blocks of gradients come in, sums on a fixed grid (or in float32) go out.
May import ``projection.adam``, ``utils``, ``types`` and ``errors``.
"""
