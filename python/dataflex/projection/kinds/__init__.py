"""Kinds of projection, registered as built-in plugins, and their base.

Blocks of gradients and moments come in, features ``(b, k)`` go out.
May import ``projection.kernels``, ``projection.adam``, ``plugins`` and below.
"""
