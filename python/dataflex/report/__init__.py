"""What a run did, for people: tables on the terminal and ``report.html``.

The files of an output folder come in, pages and tables go out.
May import ``utils``, ``types`` and ``errors``: it reads files, not objects of a run. The trainer writes the page at
its end.
"""
