"""What is right and wrong with an installation (``installation``), a run to come (``run``) and its data (``preview``).

``command`` holds the commands of the command line and imports none of the others before they are used.
"""
