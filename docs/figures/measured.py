"""Figures whose points are computed: what projection does to cosines, and what reliability says about a ranking."""

from __future__ import annotations

from drawing import BLUE, GREEN, LINE, PURPLE, Drawing

PAIRS, NUMBERS = 150, 20_000
LOW, HIGH = -0.25, 0.65


def projection() -> Drawing:
    """Cosines of pairs of vectors, and of their features of two sizes."""
    drawing = Drawing(
        960,
        430,
        "What projection does to cosines",
        f"{PAIRS} pairs of vectors of {NUMBERS:,} numbers. Across: their cosine. Up: the cosine of their features. "
        "With 256 numbers the points scatter by 0.06 around the diagonal, with 4096 by 0.016.",
    )
    for left, dim, colour in ((70, 256, PURPLE), (550, 4096, BLUE)):
        _scatter(drawing, left, dim, colour)
    return drawing


def _scatter(drawing: Drawing, left: int, dim: int, colour: str) -> None:
    side, top = 340, 40

    def place(across: float, up: float) -> tuple[float, float]:
        scale = side / (HIGH - LOW)
        return left + (across - LOW) * scale, top + side - (up - LOW) * scale

    drawing.panel(left, top, side, side)
    (x_low, y_low), (x_high, y_high), band = place(LOW, LOW), place(HIGH, HIGH), side / (HIGH - LOW) / dim**0.5
    drawing.elements.append(
        f'<path d="M {x_low:.1f} {y_low - band:.1f} L {x_high - band:.1f} {y_high:.1f} L {x_high:.1f} {y_high:.1f} '
        f'L {x_high:.1f} {y_high + band:.1f} L {x_low + band:.1f} {y_low:.1f} L {x_low:.1f} {y_low:.1f} z" '
        f'fill="{LINE}" fill-opacity="0.25"/>'
    )
    for across, up in cosine_pairs(dim):
        x, y = place(across, up)
        drawing.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
    drawing.text(left + side / 2, 26, f"features of k = {dim} numbers", size=14, weight=600)
    for tick in (0.0, 0.25, 0.5):
        x, y = place(tick, tick)
        drawing.text(x, top + side + 20, f"{tick:g}")
        drawing.text(left - 8, y + 4, f"{tick:g}", anchor="end")
    drawing.text(left + side / 2, top + side + 40, "cosine of the vectors")
    drawing.elements.append(
        f'<text transform="translate({left - 46} {top + side / 2:g}) rotate(-90)" font-size="12" fill="{LINE}" '
        'text-anchor="middle">cosine of the features</text>'
    )


def cosine_pairs(dim: int) -> list[tuple[float, float]]:
    """Cosine of each pair of vectors and of their features of ``dim`` numbers."""
    import torch

    from dataflex import Projector

    stream = torch.Generator().manual_seed(0)
    first, noise = torch.randn((2, PAIRS, NUMBERS), generator=stream).unbind()
    wanted = torch.linspace(LOW + 0.2, HIGH - 0.1, PAIRS)[:, None]
    second = wanted * first + (1 - wanted.square()).sqrt() * noise
    projector = Projector(dim)
    both = [(first, second), (projector.project(first), projector.project(second))]
    true, found = (torch.cosine_similarity(left.double(), right.double()).tolist() for left, right in both)
    return list(zip(true, found, strict=True))


TARGETS, SIZE = 16, 512
PLANTED, OTHERS = 40, 160
STRENGTHS = [0.02 * step for step in range(36)]
SHOWN_TARGETS = 10


def reliability() -> Drawing:
    """Targets that agree, targets that do not, and how well candidates are ranked at each reliability."""
    drawing = Drawing(
        960,
        340,
        "What the reliability of the target says",
        "Left: unit gradients of targets in two halves whose means point the same way; beside it, halves whose means "
        f"do not. Right: simulated targets, {TARGETS} each; the higher their reliability, the better their mean tells "
        "planted candidates from others.",
    )
    _fan(drawing, 16, "halves agree", 0.55, seed=3)
    _fan(drawing, 276, "halves do not", 0.15, seed=12)
    _ranking(drawing, 610)
    return drawing


def _fan(drawing: Drawing, left: int, title: str, strength: float, seed: int) -> None:
    """Unit vectors of two halves in the plane, with the mean of each half."""
    import torch

    side, top = 240, 40
    drawing.panel(left, top, side, side)
    drawing.text(left + side / 2, 26, title, size=14, weight=600)
    stream = torch.Generator().manual_seed(seed)
    common = torch.tensor([0.6, 0.8])
    vectors = strength * common + (1 - strength) * torch.randn((2, SHOWN_TARGETS // 2, 2), generator=stream)
    vectors = torch.nn.functional.normalize(vectors, dim=2)
    means = vectors.mean(dim=1)  # (2, 2)
    x, y = left + side / 2, top + side / 2
    for half, colour in enumerate((BLUE, PURPLE)):
        for across, up in vectors[half].tolist():
            _ray(drawing, x, y, 108 * across, 108 * up, colour, width=1.5, opacity=0.55)
        _ray(drawing, x, y, *(108 * means[half]).tolist(), colour, width=6, opacity=1)
    cosine = float(torch.cosine_similarity(means[0], means[1], dim=0))
    drawing.text(left + side / 2, top + side + 22, f"cosine of the two means: {cosine:.2f}", size=13)


def _ray(
    drawing: Drawing, x: float, y: float, across: float, up: float, colour: str, *, width: float, opacity: float
) -> None:
    drawing.elements.append(
        f'<path d="M {x:.1f} {y:.1f} L {x + across:.1f} {y - up:.1f}" stroke="{colour}" stroke-width="{width:g}" '
        f'stroke-opacity="{opacity:g}" stroke-linecap="round"/>'
    )


def _ranking(drawing: Drawing, left: int) -> None:
    """Reliability of simulated targets against how well planted candidates are found."""
    from dataflex.utils.reliability import LOW as LOW_RELIABILITY

    width, height, top = 330, 240, 40

    def place(across: float, up: float) -> tuple[float, float]:
        return left + (across + 0.1) / 1.1 * width, top + (1 - (up - 0.4) / 0.62) * height

    drawing.panel(left, top, width, height)
    drawing.text(left + width / 2, 26, "what it means for a ranking", size=14, weight=600)
    x, _ = place(LOW_RELIABILITY, 1)
    drawing.elements.append(f'<path d="M {x:.1f} {top} V {top + height}" stroke="{LINE}" stroke-dasharray="4 4"/>')
    drawing.text(x + 6, top + height - 12, f"a warning below {LOW_RELIABILITY:g}", anchor="start")
    for across, up in ranked_targets():
        x, y = place(across, up)
        drawing.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{GREEN}"/>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawing.text(place(tick, 0)[0], top + height + 20, f"{tick:g}")
    for tick in (0.5, 0.75, 1.0):
        drawing.text(left - 8, place(0, tick)[1] + 4, f"{tick:g}", anchor="end")
    drawing.text(left + width / 2, top + height + 42, "reliability of the target")
    drawing.elements.append(
        f'<text transform="translate({left - 42} {top + height / 2:g}) rotate(-90)" font-size="12" fill="{LINE}" '
        'text-anchor="middle">AUC of the planted rows</text>'
    )


def ranked_targets() -> list[tuple[float, float]]:
    """Per simulated set of targets its reliability, and the AUC of the candidates that share its direction.

    Targets and planted candidates are unit vectors with a common direction of some strength and independent noise.
    """
    import torch

    from dataflex.gradients.reliability import target_reliability

    stream = torch.Generator().manual_seed(0)
    common = torch.zeros(SIZE).index_fill_(0, torch.tensor(0), 1)

    def drawn(rows: int, strength: float) -> torch.Tensor:
        noise = torch.nn.functional.normalize(torch.randn((rows, SIZE), generator=stream), dim=1)
        return strength * common + (1 - strength**2) ** 0.5 * noise

    found = []
    for strength in STRENGTHS:
        targets, planted, others = drawn(TARGETS, strength), drawn(PLANTED, 0.14), drawn(OTHERS, 0.0)
        agreement = target_reliability([(0, targets)], TARGETS, seed=0).targets
        right, wrong = (rows @ targets.mean(dim=0) for rows in (planted, others))
        found.append((float(agreement or 0), float((right[:, None] > wrong).double().mean())))
    return found
