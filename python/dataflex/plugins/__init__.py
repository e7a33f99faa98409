"""Plugins: the hooks, the registry of components, and the base of whatever carries its own parameters.

Entry points and built-ins come in, components by kind and name go out, imported when they are first used.
May import ``utils``, ``types`` and ``errors``.
"""
