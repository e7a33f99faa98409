"""The configurations themselves: a training run and an export."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dataflex.config import checks
from dataflex.config.components import (
    ComponentSpec,
    components_file,
    idle_parameters,
    resolve_component,
    surprising_values,
)
from dataflex.config.deepspeed import read_deepspeed, shards_parameters
from dataflex.config.fields import FileConfig, RunFields
from dataflex.config.fsdp import FsdpSettings, read_fsdp
from dataflex.config.idle import find_warnings
from dataflex.config.provenance import replayable_yaml
from dataflex.config.values import Int, Names, Text
from dataflex.errors import ConfigError


class RunConfig(RunFields):
    """A training run: every key validated, the keys consistent with each other.

    ``load_config`` reads one from a file; ``RunConfig(model_name_or_path=..., ...)`` makes one in Python, where a
    wrong value is pydantic's ``ValidationError`` and a contradiction between keys a ``ConfigError``.
    """

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        problems = checks.find_problems(self)
        if problems:
            raise ConfigError([f"{key}: {text}" for key, text in problems])
        return self

    @property
    def has_eval_data(self) -> bool:
        """Whether there is an evaluation set, of its own or split off."""
        return checks.has_eval_data(self)

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of the whole run; None where they depend on the size of the data."""
        return checks.planned_steps(self)

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """Precision of the base model's weights and of the forward passes."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers to report to, ``use_swanlab`` included."""
        return list(dict.fromkeys([*self.report_to, *(["swanlab"] if self.use_swanlab else [])]))

    def deepspeed_settings(self) -> dict[str, Any] | None:
        """The content of what ``deepspeed`` names, or None.

        Raises:
            ConfigError: There is no such file, or its settings cannot be run.
        """
        return None if self.deepspeed is None else read_deepspeed(self.deepspeed, self.origin.folder)

    def fsdp_settings(self) -> FsdpSettings | None:
        """How ``fsdp`` and ``fsdp_config`` shard the parameters; None: not at all.

        Raises:
            ConfigError: There is no such file, or its settings cannot be run.
        """
        return read_fsdp(self.fsdp, self.fsdp_config, self.origin.folder)

    @property
    def shards_parameters(self) -> bool:
        """Whether ``fsdp``, or ``deepspeed`` with stage 3, shards the parameters.

        Raises:
            ConfigError: There is no such file, or its settings cannot be run.
        """
        return self.fsdp_settings() is not None or shards_parameters(self.deepspeed_settings())

    def component(self) -> ComponentSpec:
        """The component that ``component_name`` names, with its merged parameters; they are not validated here.

        Raises:
            ConfigError: The file, the entry or the component does not exist, or the file is malformed.
        """
        return resolve_component(self)

    def warnings(self) -> list[str]:
        """What was given and has no effect, or not the effect that its author must expect; one line each."""
        found = [self.origin.about(key, text) for key, text in find_warnings(self)]
        if checks.asks_component(self):
            _, substituted = components_file(self)
            if substituted:
                found.append(self.origin.about("components_cfg_file", substituted))
            found += [*surprising_values(self), *idle_parameters(self)]
        return self.origin.in_order([*super().warnings(), *found])

    def to_yaml(self) -> str:
        """The run as a YAML file that repeats it: defaults and parameters written out, local paths absolute.

        Comments at its head say what wrote it, when, with which versions; literal secrets are replaced.
        """
        return replayable_yaml(self)


def _no_pickle(value: Any) -> Any:
    if value is True:
        raise ValueError("not supported: pickled weights run code when they are loaded; set false for safetensors")
    return value


class ExportConfig(FileConfig):
    """An export: an adapter merged into its base model, written as safetensors."""

    model_name_or_path: Text = Field(description="base model: a local folder or a hub id")
    adapter_name_or_path: Names | None = Field(
        default=None, description="adapters to merge, in their order: local folders or hub ids; null: none"
    )
    template: Text | None = Field(default=None, description="chat template by name; null: the tokenizer's own")
    trust_remote_code: bool = Field(
        default=False, description="let the model's repository run its own Python code on this machine"
    )
    export_dir: Text = Field(description="folder of the merged model")
    export_size: Int = Field(default=5, ge=1, description="largest file of weights, in GB")
    export_device: Literal["cpu", "auto"] = Field(
        default="cpu", description="where to merge; auto: a GPU if there is one"
    )
    export_legacy_format: Annotated[Literal[False], BeforeValidator(_no_pickle)] = Field(
        default=False, description="pickled weights are not written: false"
    )


def config_schema() -> dict[str, Any]:
    """JSON schema of the YAML of a run, for editors that complete and check it."""
    schema = RunConfig.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "dataflex run"}
