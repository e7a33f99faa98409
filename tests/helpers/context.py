"""A selection context around tiny parts: the one that plugin authors test with."""

from dataflex.testing.context import stepped_optimizer, tiny_context

__all__ = ["stepped_optimizer", "tiny_context"]
