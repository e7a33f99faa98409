"""What is right and wrong with an installation (``installation``), a run to come (``run``) and its data (``preview``).

The commands are in :mod:`dataflex.cli.doctor`, which imports none of these before they are used.
"""
