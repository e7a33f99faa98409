"""NICE: its parameters, the answers of a round, the selector.

Evaluation prompts and a reward come in, the best candidates go out.
May import ``selectors.gradient``, ``rollouts``, ``rewards`` and what they may.
"""

from dataflex.selectors.nice.config import NiceConfig
from dataflex.selectors.nice.selector import NiceSelector

__all__ = ["NiceConfig", "NiceSelector"]
