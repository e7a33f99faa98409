"""A plugin of dataflex: the selector ``k_center`` and the reward backend ``unit_tests``."""
