"""Configuration: one flat YAML in LLaMA-Factory's names, typed, cross-checked, with errors by file and line.

A file and overrides come in, a validated ``RunConfig`` (or one of ``near`` and ``export``) goes out.
May import ``plugins``, ``utils``, ``types``, ``version`` and ``errors``.
"""

from __future__ import annotations

from dataflex.config.components import ComponentSpec, validate_component
from dataflex.config.loader import load_config, load_export_config, load_near_config
from dataflex.config.near import NearConfig
from dataflex.config.paths import locate, resolve_path
from dataflex.config.provenance import versions
from dataflex.config.schema import ExportConfig, RunConfig, config_schema

__all__ = [
    "ComponentSpec",
    "ExportConfig",
    "NearConfig",
    "RunConfig",
    "config_schema",
    "load_config",
    "load_export_config",
    "load_near_config",
    "locate",
    "resolve_path",
    "validate_component",
    "versions",
]
