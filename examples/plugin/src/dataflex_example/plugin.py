"""What the entry point names: the hooks that this package implements.

dataflex imports this module each time it looks for plugins, so it imports nothing heavy; the classes are named, and
imported when they are used.
"""

from __future__ import annotations

from dataflex import hookimpl
from dataflex.plugins.hookspecs import Register

dataflex_hook_api = 1
"""Version of the hooks that this module was written for."""


@hookimpl
def register_selectors(register: Register) -> None:
    """The selector of this package."""
    register(
        "k_center",
        "dataflex_example.k_center:KCenterSelector",
        summary="samples that cover the data: each is the farthest from those taken before",
    )


@hookimpl
def register_mixers(register: Register) -> None:
    """The mixer of this package."""
    register("tempered", "dataflex_example.tempered:TemperedMixer", summary="shares by a power of the domains' sizes")


@hookimpl
def register_weighters(register: Register) -> None:
    """The weighter of this package."""
    register("per_sample", "dataflex_example.per_sample:PerSampleWeighter", summary="samples count alike, not tokens")


@hookimpl
def register_reward_backends(register: Register) -> None:
    """The reward backend of this package."""
    register(
        "unit_tests",
        "dataflex_example.unit_tests:UnitTestReward",
        summary="generated Python code has to pass the sample's unit tests",
    )
