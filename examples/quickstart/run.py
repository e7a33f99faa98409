"""Run the quickstart: fetch the model where it is missing, then select and train as ``nice.yaml`` says.

    python examples/quickstart/run.py                       # = make demo, once dataflex is installed
    python examples/quickstart/run.py seed=1 update_times=1 # any key of nice.yaml can be replaced

It works from any directory; relative paths in overrides start at the root of the repository.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from fetch_model import REPOSITORY, fetch, fetch_from_hub, model_folder

from dataflex.errors import DataflexError

CONFIG = "examples/quickstart/nice.yaml"
MODEL_KEY = "model_name_or_path"


def run(overrides: list[str], *, hub: bool) -> int:
    """Fetch the model unless an override names another one, train, and return the exit status of the training."""
    if not any(override.startswith(f"{MODEL_KEY}=") for override in overrides):
        model = fetch_from_hub() if hub else fetch(model_folder())
        overrides = [f"{MODEL_KEY}={model}", *overrides]
    command = [sys.executable, "-m", "dataflex", "train", CONFIG, *overrides]
    status = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if status == 0:
        print(f"\nPaths start at {REPOSITORY}. What the table means: examples/quickstart/README.md")
    return status


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Select and train as nice.yaml says.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a key of nice.yaml")
    parser.add_argument("--hub", action="store_true", help="take the model from the Hugging Face hub")
    arguments = parser.parse_args()
    try:
        return run(arguments.overrides, hub=arguments.hub)
    except DataflexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
