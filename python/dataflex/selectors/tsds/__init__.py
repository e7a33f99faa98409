"""TSDS: its parameters, the vectors that rows are compared by, the draw.

Candidates and targets come in, a draw that looks like the targets goes out.
May import ``selectors.gradient``, ``selectors.candidates``, ``selectors.draw``, ``retrieval`` and what they may.
"""

from dataflex.selectors.tsds.config import TsdsConfig
from dataflex.selectors.tsds.selector import TsdsSelector, nearest_others

__all__ = ["TsdsConfig", "TsdsSelector", "nearest_others"]
