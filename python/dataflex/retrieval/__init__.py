"""Retrieval: sentence embeddings, nearest neighbours, the NEAR index and its matrix, transport over neighbours.

Texts of candidates and targets come in, rows of nearest candidates go out.
May import ``models``, ``data``, ``config`` and what they may.
"""
