"""Integrations: the same curriculum inside trainers that people have already.

Their arguments, model, optimizer and rows come in; the rows of each phase, records and a state go out.
May import ``training`` (its facts, arguments and conversions: not its loop) and what it may.
"""
