"""Selectors: each one decides which candidates the next phase trains on."""
