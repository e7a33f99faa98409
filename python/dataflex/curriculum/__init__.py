"""The curriculum: a schedule joined with a selector decides what is trained on next; one object, consulted by loops.

A schedule, a selector, the data and, at each selection, the model come in; rows of steps, records and a state go out.
May import ``selectors`` (their contract alone: it names none) and what they may; a curriculum knows no loop.
"""
