"""Nearest neighbours by cosine: exact by blocked matrix products, approximate by a graph, one interface."""
