"""Commands of the command line that have a module of their own; heavy packages are imported when one runs."""
