"""What the reliability of a target means: a cosine between two halves of the targets, in words and in numbers."""

from __future__ import annotations

LOW = 0.4
"""Below this the direction is mostly noise. On real models and pools that nobody had tuned for, sparse rewards gave
0.17 to 0.36, and a ranking by chance in one of three runs; 0.54 and more found the planted rows in every run."""
HIGH = 0.7


def decisive(targets: float | None, answers: float | None) -> float | None:
    """The reliability that counts.

    The noise of the answers is in every target, so the halves of the targets know of it; those of the answers decide
    where there is one target alone.

    Args:
        targets: Cosine of two halves of the targets, where it is known.
        answers: The same for two halves of each prompt's answers.
    """
    return answers if targets is None else targets


def meaning(value: float) -> str:
    """What a reliability says about the ranking."""
    if value < LOW:
        return "mostly noise: rows may be ranked by little more than chance"
    return "the halves say the same" if value >= HIGH else "the halves agree in part: the ranking can be used"


def needed_cosine(targets: int) -> float | None:
    """The mean cosine that two targets need for a reliability of :data:`LOW`, by the formula of two halves.

    With a common direction of strength s^2, which is the mean cosine of two targets, the reliability of q of them is
    s^2 / (s^2 + 2 (1 - s^2) / q); None for fewer than two, which have no halves.
    """
    if targets < 2:
        return None
    noise = 2 / targets
    return LOW * noise / (1 - LOW + LOW * noise)
