"""Samples as unit vectors: texts by a template, encoders, and a cache on disk that survives a kill."""
