"""Draw the figures of the documentation as SVG; some compute with dataflex, one reads the imports of its code.

python docs/figures/make_figures.py        # rewrites the files beside this script
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from drawing import BLUE, GREEN, PURPLE, SLATE, Box, Drawing
from measured import projection, reliability


def how_it_works() -> Drawing:
    """The loop of a run above, one selection of NICE in detail below."""
    drawing = Drawing(
        960,
        492,
        "How a run with NICE works",
        "Warm-up on random rows; then, again and again: select rows with the model as it is now, train on them. A "
        "selection compares the Adam-normalised gradient of each candidate row with the policy gradient of the "
        "rewards on the evaluation prompts, both under the same random projection, by their cosine, and takes the "
        "rows with the highest mean.",
    )
    warm_up = drawing.box(Box(16, 56, 170, 58, SLATE, "Warm up", ("on random rows",)))
    select = drawing.box(Box(258, 56, 206, 58, GREEN, "Select", ("with the model as it is now",)))
    train = drawing.box(Box(536, 56, 190, 58, BLUE, "Train", ("on the selected rows",)))
    result = drawing.box(Box(798, 56, 146, 58, SLATE, "Adapter", ("and a report",)))
    for source, target in ((warm_up, select), (select, train), (train, result)):
        drawing.arrow(source.right, target.left)
    drawing.arrow(train.top, (train.top[0], 28), (select.top[0], 28), select.top)
    drawing.text((select.top[0] + train.top[0]) / 2, 20, "update_times rounds")
    drawing.zoom(select, 16, 944, 172)
    _selection(drawing)
    return drawing


def _selection(drawing: Drawing) -> None:
    drawing.panel(16, 172, 928, 304)
    drawing.text(36, 200, "One selection of NICE", size=14, weight=600, anchor="start")
    drawing.text(36, 234, "What would each row do to the model?", anchor="start")
    rows = drawing.box(Box(36, 244, 140, 66, BLUE, "Candidate rows", ("n of them",)))
    loss = drawing.box(Box(200, 244, 140, 66, BLUE, "Gradient", ("of each row's", "own loss")))
    adam = drawing.box(
        Box(364, 244, 304, 66, BLUE, "Adam-normalised", ("the step that the optimizer would take", "on this row now"))
    )
    drawing.text(36, 376, "What would raise the reward on the target?", anchor="start")
    prompts = drawing.box(Box(36, 386, 140, 66, PURPLE, "Target prompts", ("q of them",)))
    answers = drawing.box(Box(200, 386, 140, 66, PURPLE, "Answers", ("M for each prompt,", "by the model itself")))
    rewards = drawing.box(Box(364, 386, 140, 66, PURPLE, "Rewards", ("of a metric", "or a judge")))
    policy = drawing.box(Box(528, 386, 140, 66, PURPLE, "Policy gradient", ("towards the better", "answers")))
    project = drawing.box(
        Box(694, 244, 108, 208, SLATE, "Project", ("at random", "to k numbers,", "both sides", "alike"))
    )
    top = drawing.box(Box(828, 244, 100, 208, GREEN, "Top rows", ("by cosine,", "mean over", "the prompts")))
    for source, target in ((rows, loss), (loss, adam), (prompts, answers), (answers, rewards), (rewards, policy)):
        drawing.arrow(source.right, target.left)
    for side in (adam, policy):
        drawing.arrow(side.right, (project.x, side.right[1]))
    drawing.arrow(project.right, top.left)


def gradient_feature() -> Drawing:
    """From a row to its feature, and what is compared."""
    drawing = Drawing(
        960,
        268,
        "What a gradient feature is",
        "A training row's loss gives a gradient of p numbers, which is turned into the step that Adam would take, and "
        "projected at random to k numbers. A target row's gradient is projected by the same matrix. Their cosine says "
        "whether training on the row helps the target.",
    )
    row = drawing.box(Box(16, 40, 132, 66, BLUE, "Training row", ("prompt and", "answer")))
    loss = drawing.box(Box(180, 40, 132, 66, BLUE, "Gradient g", ("p numbers, of", "the row's loss")))
    step = drawing.box(Box(344, 40, 156, 66, BLUE, "Adam step u", ("p numbers, by the", "optimizer's moments")))
    feature = drawing.box(Box(608, 40, 132, 66, SLATE, "Feature P u", ("k numbers",)))
    target = drawing.box(Box(16, 176, 132, 66, PURPLE, "Target row", ("answer, or", "answers and rewards")))
    gradient = drawing.box(Box(344, 176, 156, 66, PURPLE, "Gradient g", ("p numbers", "of what should fall")))
    direction = drawing.box(Box(608, 176, 132, 66, SLATE, "Feature P g", ("k numbers",)))
    cosine = drawing.box(Box(796, 84, 148, 114, GREEN, "Cosine", ("1: helps most", "0: does nothing", "-1: does harm")))
    for source, end in ((row, loss), (loss, step), (step, feature), (target, gradient), (gradient, direction)):
        drawing.arrow(source.right, end.left)
    for side in (feature, direction):
        drawing.arrow(side.right, (768, side.right[1]), (768, cosine.left[1]), cosine.left)
    for box in (step, gradient):
        drawing.text((box.right[0] + feature.x) / 2, box.right[1] - 10, "project by P")
    return drawing


PACKAGE = Path(__file__).parents[2] / "python" / "dataflex"
COLUMNS = {
    **dict.fromkeys(("projection", "testing"), 0),
    **dict.fromkeys(("config", "version", "gradients", "retrieval", "doctor"), 1),
    **dict.fromkeys(
        (
            "visible",
            "errors",
            "plugins",
            "models",
            "selectors",
            "curriculum",
            "mixers",
            "training",
            "offline",
            "evaluation",
            "cli",
        ),
        2,
    ),
    **dict.fromkeys(("data", "types", "rollouts", "rewards", "integrations"), 3),
    **dict.fromkeys(("utils", "report", "weighters"), 4),
}
"""Where a room stands from left to right; its floor follows from the imports."""
FILLS = {
    **dict.fromkeys(("plugins", "utils", "types", "errors", "visible", "version"), SLATE),
    **dict.fromkeys(("rollouts", "rewards"), PURPLE),
    **dict.fromkeys(("cli", "report", "doctor", "evaluation", "testing", "config"), GREEN),
}
"""What people meet is green, rewards are purple, what everything stands on is grey; the rest is blue."""


def room_imports() -> dict[str, set[str]]:
    """Per room (a package or module at the top of dataflex), the rooms that its files import, for types included."""
    found: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):  # they name everything, and nothing imports them
            continue
        found.setdefault(room, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found[room] |= {name.split(".")[1] for name in modules if name.startswith("dataflex.")} - {room}
    return found


def needed_arrows(imports: dict[str, set[str]]) -> dict[str, list[str]]:
    """The imports that do not follow from others: a room may also import what is below those."""

    def below(room: str) -> set[str]:
        return {found for inner in imports[room] for found in ({inner} | below(inner))}

    return {
        room: sorted(inner for inner in direct if not any(inner in below(other) for other in direct - {inner}))
        for room, direct in imports.items()
    }


def floors(arrows: dict[str, list[str]]) -> dict[str, int]:
    """How many rooms lie below each one on the longest way down."""

    def floor(room: str) -> int:
        return max((floor(inner) + 1 for inner in arrows[room]), default=0)

    return {room: floor(room) for room in arrows}


def architecture() -> Drawing:
    """The rooms of the package by floors, and who imports whom."""
    arrows = needed_arrows(room_imports())
    levels = floors(arrows)
    top = max(levels.values())
    drawing = Drawing(
        960,
        72 * top + 72,
        "The rooms of dataflex",
        "Packages and modules at the top of dataflex. An arrow leads from a room to one that it imports; a room may "
        "also import whatever is further below on its arrows. Drawn from the imports of the code: "
        + "; ".join(f"{room} imports {', '.join(inner)}" for room, inner in sorted(arrows.items()) if inner)
        + ".",
    )
    boxes = {
        room: Box(20 + 188 * COLUMNS[room], 16 + 72 * (top - level), 168, 40, FILLS.get(room, BLUE), room)
        for room, level in levels.items()
    }
    for room, inner in sorted(arrows.items()):
        for other in inner:
            source, target = boxes[room], boxes[other]
            if levels[room] - levels[other] > 1 and COLUMNS[room] != COLUMNS[other]:  # around what stands between
                side = source.right if target.x > source.x else source.left
                drawing.arrow(side, (target.top[0], side[1]), target.top)
            else:
                drawing.arrow(source.bottom, target.top)
    for box in boxes.values():
        drawing.box(box)
    return drawing


FIGURES = {
    "how_it_works.svg": how_it_works,
    "gradient_feature.svg": gradient_feature,
    "projection.svg": projection,
    "reliability.svg": reliability,
    "architecture.svg": architecture,
}


def main() -> None:
    """Write every figure."""
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write (default: here)")
    folder = parser.parse_args().out
    for name, draw in FIGURES.items():
        (folder / name).write_text(draw().svg(), encoding="utf-8")
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()
