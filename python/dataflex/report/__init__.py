"""What a run or a selection did, for people: tables on the terminal, pictures on a page, tables for programs.

The files of an output folder come in, pages and tables go out.
May import ``utils``, ``version`` and ``errors``: it reads files, not objects of a run. Loops write the page after each
selection and at their end.
"""
