"""The model: base and adapters, precision, losses, what tells one state from another, merging and export.

Names and folders come in, models in eval or train mode, losses and fingerprints go out.
May import ``data``, ``config`` and what they may.
"""
