"""A plugin of dataflex: ``k_center``, ``tempered``, ``per_sample`` and the reward backend ``unit_tests``."""
