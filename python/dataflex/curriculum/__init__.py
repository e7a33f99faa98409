"""The curriculum: what is trained on next, and what it counts; one object, consulted by loops.

A schedule, a selector, mixer or weighter, the data and, at each decision, the model come in; rows of steps, weights,
records and a state go out.
May import ``selectors``, ``mixers``, ``weighters`` (their contracts alone: it names none) and what they may; a
curriculum knows no loop.
"""
