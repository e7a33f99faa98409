"""Files, progress bars, terminal output, processes and launchers, the vLLM engine: what any part may need.

Nothing flows through here: helpers that know no model, data or method.
May import ``errors`` and ``types`` alone.
"""
