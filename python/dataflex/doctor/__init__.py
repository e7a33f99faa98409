"""What is right and wrong with an installation (``installation``), a run to come (``run``) and its data (``preview``).

A configuration comes in, checks with what to do about them go out.
May import ``training``, ``offline`` and what they may.
"""
