"""Evaluation of finished models: base and adapters side by side, with bootstrap intervals.

A run's configuration and adapters come in, estimates and their differences go out.
May import ``offline``, ``training`` and what they may.
"""
