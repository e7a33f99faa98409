"""A run's configuration written out, so that it can be read, compared and repeated."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from dataflex.config.checks import asks_component
from dataflex.config.components import resolve_component
from dataflex.config.fields import RunFields
from dataflex.config.paths import absolute_if_found
from dataflex.utils.messages import redact
from dataflex.version import __version__
from dataflex.visible import ACTING_IN_LINES

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "pydantic")
"""Distributions whose versions can change the outcome of a run."""

_PATH_KEYS = (
    *("model_name_or_path", "adapter_name_or_path", "dataset_dir", "resume_from_checkpoint"),
    *("deepspeed", "fsdp_config"),
)
_DATASET_KEYS = ("dataset", "eval_dataset", "mixer_eval_dataset")


def versions() -> dict[str, str]:
    """Versions of dataflex, Python and the packages that matter; nothing is imported for it."""
    found = {"dataflex": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str | None:
    """The revision of the working directory, ``-dirty`` if it has changes; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def replayable_yaml(config: RunFields) -> str:
    """See :meth:`RunConfig.to_yaml`."""
    return yaml_text(_resolved(config), "dataflex run, resolved; `dataflex train` on this file repeats it")


def yaml_text(values: Mapping[str, Any], what: str) -> str:
    """Values as YAML without literal secrets, below comments that say what wrote it, when, with which versions.

    Args:
        values: JSON-able keys of a configuration.
        what: First lines of the comments.
    """
    redacted = redact(values)
    text = yaml.safe_dump(redacted, sort_keys=False, allow_unicode=True, width=120)
    if ACTING_IN_LINES.search(text):  # all that is not ASCII is then escaped in quotes, and still means the same
        text = yaml.safe_dump(redacted, sort_keys=False, width=120)
    return _header(what) + text


def _header(what: str) -> str:
    facts = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "platform": platform.platform(),
        "git": git_revision() or "none",
    }
    lines = [
        *what.splitlines(),
        *(f"{k}: {v}" for k, v in facts.items()),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _resolved(config: RunFields) -> dict[str, Any]:
    """All keys in their order; local paths absolute, the component's parameters in the file itself."""
    values = config.model_dump(mode="json")
    folder = config.origin.folder
    for key in _PATH_KEYS:
        if isinstance(values[key], str):
            values[key] = absolute_if_found(values[key], folder)
    for key in _DATASET_KEYS:
        if values[key] is not None:
            # a bare name is looked up in dataset_info.json first, where a folder of that name does not count
            values[key] = [absolute_if_found(name, folder, files_only="/" not in name) for name in values[key]]
    if asks_component(config):
        spec = resolve_component(config)
        values |= {"components_cfg_file": False, "component_name": spec.name, "component_params": dict(spec.params)}
    return values
