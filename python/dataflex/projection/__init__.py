"""Random projection: the projector, its kinds, Adam normalisation and the kernels under both.

Per-sample gradients ``(b, p)`` with an optimizer's moments come in, features ``(b, k)`` go out.
May import ``plugins``, ``utils``, ``types`` and ``errors``: it knows no model and no data.
"""
