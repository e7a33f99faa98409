"""Does it select well? Pools with planted rows, every method on them, one table."""
