"""What the benchmark scripts share: turns, contenders, peers, machine facts, tables and figures."""
