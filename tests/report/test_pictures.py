"""What the pictures of a run with mixtures or weights show."""

from __future__ import annotations

import numpy as np
import pytest

from dataflex.report.pictures import mixture_areas, weight_bands


def test_every_phase_has_its_shares_up_to_the_end_of_the_run() -> None:
    shares = {0: [0.5, 0.3, 0.2], 2: [0.2, 0.6, 0.2], 4: [0.1, 0.1, 0.8]}
    names = ["a", "_b", "$c$"]
    figure = mixture_areas([{"step": step, "domains": names, "proportions": shares[step]} for step in shares], 6)
    assert figure is not None
    [axes] = figure.axes
    assert axes.get_xlim() == (0, 6)
    lowest = axes.collections[0].get_paths()[0].vertices  # the domain with the largest mean share: $c$
    for step, share in shares.items():
        assert any(np.allclose(corner, (step, share[2])) for corner in lowest)
    assert any(np.allclose(corner, (6, 0.8)) for corner in lowest)


def test_without_mixtures_or_weights_there_is_no_picture() -> None:
    assert mixture_areas([], 6) is None
    assert mixture_areas([{"step": 0}], 6) is None
    assert weight_bands([]) is None


def test_weights_are_drawn_between_their_quantiles() -> None:
    quantiles = {"weight_min": 0.2, "weight_q25": 0.8, "weight_median": 1.0, "weight_q75": 1.1, "weight_max": 2.0}
    figure = weight_bands([{"current_steps": step, **quantiles} for step in (3, 4, 5)])
    assert figure is not None
    outer, inner = (area.get_paths()[0].get_extents() for area in figure.axes[0].collections[:2])
    assert (outer.y0, outer.y1, outer.x0, outer.x1) == pytest.approx((0.2, 2.0, 3, 5))
    assert (inner.y0, inner.y1) == pytest.approx((0.8, 1.1))
