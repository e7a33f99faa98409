"""From a configuration to a finished run: component, data, model, schedule, trainer."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from dataflex.config import RunConfig, load_config, validate_component
from dataflex.config.checks import asks_component
from dataflex.config.fsdp import launched_fsdp, read_settings
from dataflex.config.idle import is_written
from dataflex.config.values import whole_steps
from dataflex.curriculum.schedule import Schedule
from dataflex.data.cache import CacheSettings
from dataflex.data.dataset import TokenizedDataset, kept_dataset, tokenize
from dataflex.data.examples import ArrayRows, ChosenSamples
from dataflex.data.prepare import tokenised_rows
from dataflex.data.sample_reader import SampleReader
from dataflex.data.sources import open_samples
from dataflex.data.templates import ChatTemplate
from dataflex.errors import ConfigError
from dataflex.models.adapters import load_adapter
from dataflex.models.model import add_lora, load_model, load_tokenizer
from dataflex.models.quantization import Quantization
from dataflex.models.trainable import train_all, train_layers
from dataflex.plugins.registry import registry
from dataflex.training.arguments import SwanlabOptions, TrainingArguments
from dataflex.training.component import Component, find_mixture
from dataflex.training.folder import check_output_dir
from dataflex.training.inputs import run_template
from dataflex.training.preflight import check_component
from dataflex.training.trainer import Trainer
from dataflex.types import Sample
from dataflex.utils.launch import is_main_process, process_count

logger = logging.getLogger(__name__)

OUTLINED = 2000
"""Rows that stand for all where costs are predicted: their mean length is known to some 2 %."""
TRAINING, EVALUATION, MIXER = "training set", "evaluation set", "rows of mixer_eval_dataset"


def train(config: str | Path | RunConfig, *overrides: str) -> dict[str, Any]:
    """Train as a YAML file (or a loaded configuration) describes.

    Args:
        config: Path of a YAML file with LLaMA-Factory's keys, or what :func:`dataflex.load_config` returned.
        *overrides: ``key=value`` texts that replace keys of the file.

    Returns:
        What ``all_results.json`` holds.

    Raises:
        ConfigError: Every problem of the configuration, with file and line.
        DataflexError: Anything else that stops the run; nothing is computed before data and sizes are checked.

    Example:
        >>> results = dataflex.train("nice.yaml", "learning_rate=2e-4")
    """
    if not isinstance(config, RunConfig):
        config = load_config(config, list(overrides))
    elif overrides:
        raise ConfigError("overrides need the path of a configuration file, not a loaded configuration")
    return train_from_config(config)


def train_from_config(config: RunConfig) -> dict[str, Any]:
    """Run the training that a loaded configuration describes; see :func:`train`."""
    for warning in config.warnings():
        _warn(warning)
    args = training_arguments(config)
    check_output_dir(args)
    component = build_component(config)
    tokenizer = load_tokenizer(config.locate(config.model_name_or_path), trust_remote_code=config.trust_remote_code)
    template = run_template(args, tokenizer)
    training, evaluation = load_datasets(config, template)
    measured, domains = load_measured(config, template), domain_names(config)
    schedule = build_schedule(config, len(training))
    if component.mixer is not None:
        find_mixture(component.mixer, args, training, measured, domains)
    check_component(args, schedule, component, training, evaluation, process_count())
    trainer = Trainer(
        build_model(config),
        tokenizer,
        training,
        evaluation,
        component.selector,
        mixer=component.mixer,
        weighter=component.weighter,
        mixer_eval_dataset=measured,
        domains=domains,
        schedule=schedule,
        args=args,
    )
    trainer.template = template  # with the date that the data were rendered with
    if config.planned_steps is None:
        for key, text in trainer.idle_settings():
            if not is_written(config, key):
                continue
            _warn(config.origin.about(key, text))
    trainer.run_config = config.to_yaml()
    return trainer.train()


def _warn(text: str) -> None:
    """Say something once, whatever the number of processes."""
    if is_main_process():
        logger.warning("%s", text)


def build_component(config: RunConfig) -> Component:
    """The configured selector, mixer or weighter with validated parameters; nothing for ``train_type: static``."""
    if config.train_type == "static":
        return Component()
    if not asks_component(config):
        return Component(mixer=registry().get("mixer", "static").from_params({}))
    spec = config.component()
    return Component(**{spec.kind: validate_component(spec).from_params(dict(spec.params))})


def build_model(config: RunConfig) -> nn.Module:
    """The base model as ``finetuning_type`` trains it, or with the adapter that ``adapter_name_or_path`` names."""
    set_seed(config.seed)
    base = load_model(
        config.locate(config.model_name_or_path),
        precision="fp32" if config.finetuning_type == "full" or is_sharded_run(config) else config.precision,
        trust_remote_code=config.trust_remote_code,
        quantization=quantization(config),
    )
    if config.adapter_name_or_path is not None:
        return cast(nn.Module, load_adapter(base, config.locate(config.adapter_name_or_path)))
    return prepared(base, config)


def is_sharded_run(config: RunConfig) -> bool:
    """Whether the parameters are sharded over the processes, if there are several."""
    return config.shards_parameters or launched_fsdp(os.environ) is not None


def quantization(config: RunConfig) -> Quantization | None:
    """How the base weights are stored; None: in the run's precision."""
    if config.quantization_bit is None:
        return None
    return Quantization(config.quantization_bit, config.quantization_type, config.double_quantization)


def prepared(base: PreTrainedModel, config: RunConfig) -> nn.Module:
    """The base model with what ``finetuning_type`` trains: all of it, some layers, or a new LoRA adapter."""
    if config.finetuning_type == "full":
        return train_all(base)
    if config.finetuning_type == "freeze":
        modules, extra = config.freeze_trainable_modules, config.freeze_extra_modules or ()
        return train_layers(base, config.freeze_trainable_layers, modules=modules, extra=extra)
    return add_lora(
        base,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target=config.lora_target,
        rslora=config.use_rslora,
        dora=config.use_dora,
    )


def load_rows(config: RunConfig) -> tuple[Sequence[Sample], Sequence[Sample] | None]:
    """Training and evaluation rows; ``val_size`` splits the latter off the former. They are read one by one."""
    samples = _open(config, config.dataset)
    if config.val_size > 0:
        training, held_out = split_places(len(samples), config.val_size, config.seed)
        return ChosenSamples(samples, training), ChosenSamples(samples, held_out)
    return samples, None if config.eval_dataset is None else _open(config, config.eval_dataset)


def load_datasets(config: RunConfig, template: ChatTemplate) -> tuple[TokenizedDataset, TokenizedDataset | None]:
    """Tokenised training and evaluation sets; see :func:`load_rows`."""
    rows = _tokenised(config, config.dataset, template, TRAINING)
    held_out = None
    if config.val_size > 0:
        places, others = split_places(len(rows), config.val_size, config.seed)
        training = kept_dataset(rows, places, keep_unlabelled=False, name=TRAINING)
        held_out = kept_dataset(rows, others, keep_unlabelled=True, name=EVALUATION)
    else:
        training = kept_dataset(rows, keep_unlabelled=False, name=TRAINING)
        if config.eval_dataset is not None:
            found = _tokenised(config, config.eval_dataset, template, EVALUATION)
            held_out = kept_dataset(found, keep_unlabelled=True, name=EVALUATION)
    for name, dataset in ((TRAINING, training), (EVALUATION, held_out)):
        if dataset is not None:
            logger.info("%s: %s", name, dataset.report.describe())
    return training, held_out


def outlined_datasets(config: RunConfig, template: ChatTemplate) -> tuple[TokenizedDataset, TokenizedDataset | None]:
    """As many rows as :func:`load_datasets` has, a few of which stand for all: enough to know what they cost."""
    training, held_out = load_rows(config)
    found = _outlined(training, template, config.cutoff_len, keep_unlabelled=False, name=TRAINING)
    if held_out is None:
        return found, None
    return found, _outlined(held_out, template, config.cutoff_len, keep_unlabelled=True, name=EVALUATION)


def _outlined(
    samples: Sequence[Sample], template: ChatTemplate, cutoff_len: int, *, keep_unlabelled: bool, name: str
) -> TokenizedDataset:
    """Every row if there are up to :data:`OUTLINED`; else so many in equal steps, which stand for all in turn."""
    places = np.linspace(0, len(samples) - 1, min(len(samples), OUTLINED)).round().astype(int).tolist()
    some = [samples[place] for place in places]
    found = tokenize(some, template, cutoff_len, keep_unlabelled=keep_unlabelled, name=name)
    if len(places) == len(samples):
        return found
    logger.info("%s: %d of %d rows are read; they stand for all", name, len(places), len(samples))
    total = round(len(samples) * len(found) / len(places))  # as many without a label as among those
    return found.select(np.resize(np.arange(len(found)), total))


def load_measured(config: RunConfig, template: ChatTemplate) -> TokenizedDataset | None:
    """The rows that ``mixer_eval_dataset`` names, tokenised; None: a mixer measures domains by the training rows."""
    if config.train_type != "dynamic_mix" or config.mixer_eval_dataset is None or not asks_component(config):
        return None
    rows = _tokenised(config, config.mixer_eval_dataset, template, MIXER)
    measured = kept_dataset(rows, keep_unlabelled=False, name=MIXER)
    logger.info("%s: %s", MIXER, measured.report.describe())
    return measured


def domain_names(config: RunConfig) -> list[str]:
    """The domains in the order of the configuration: its datasets, whether or not rows of theirs are left."""
    return list(config.dataset) if config.domain_column is None else []


def evaluation_samples(config: RunConfig) -> list[Sample] | None:
    """The evaluation rows of :func:`load_rows`; the training rows are read only where ``val_size`` splits them."""
    if config.val_size > 0:
        samples = list(_open(config, config.dataset))
        return [samples[place] for place in split_places(len(samples), config.val_size, config.seed)[1]]
    return None if config.eval_dataset is None else list(_open(config, config.eval_dataset))


def split_places(total: int, val_size: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the training and of the evaluation samples, drawn at random by seed.

    Args:
        total: Number of all samples.
        val_size: Share of the evaluation set below 1, or its number of samples.
        seed: Seed of the draw.

    Raises:
        ConfigError: Nothing would be left on one of the sides.
    """
    count = math.ceil(val_size * total) if val_size < 1 else int(val_size)
    if not 0 < count < total:
        raise ConfigError(f"val_size {val_size} would take {count} of {total} samples")
    held_out = np.sort(np.random.default_rng([seed, 2]).choice(total, size=count, replace=False))
    return np.setdiff1d(np.arange(total), held_out, assume_unique=True), held_out


def build_schedule(config: RunConfig, num_samples: int) -> Schedule:
    """The configured phases.

    Without any, and for ``train_type: static``, one random phase of a pass over the data; for ``dynamic_weight`` the
    whole run as one cycle: what is weighed comes after ``warmup_step``.
    """
    phases = Schedule(config.warmup_step, config.update_step, config.update_times) if _has_phases(config) else None
    if phases is not None:
        return phases
    global_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * process_count()
    steps = math.ceil(num_samples / global_batch)
    if config.train_type != "dynamic_weight":
        return Schedule(warmup_step=steps)
    total = config.train_step or whole_steps(steps, config.num_train_epochs)
    return Schedule(min(config.warmup_step, total), total - min(config.warmup_step, total), 1)


def _has_phases(config: RunConfig) -> bool:
    cycle = config.warmup_step + config.update_step * config.update_times
    return config.train_type in ("dynamic_select", "dynamic_mix") and cycle > 0


def training_arguments(config: RunConfig) -> TrainingArguments:
    """The trainer's arguments: the keys that it shares with the configuration, by name.

    The schedule of a ``dynamic_weight`` run is the whole run: it is gone through once.
    """
    shared = {name: getattr(config, name) for name in TrainingArguments.model_fields if hasattr(config, name)}
    resume = config.resume_from_checkpoint
    return TrainingArguments(
        **{
            **shared,
            **({"num_train_epochs": 1.0} if config.train_type == "dynamic_weight" else {}),
            "deepspeed": config.deepspeed_settings(),
            "fsdp_config": config.fsdp_config and read_settings(config.fsdp_config, config.origin.folder),
            "report_to": config.trackers,
            "swanlab": {name: getattr(config, f"swanlab_{name}") for name in SwanlabOptions.model_fields},
            "resume_from_checkpoint": config.resolve(resume) if isinstance(resume, str) else resume,
        }
    )


def _open(config: RunConfig, names: list[str]) -> SampleReader:
    folder = config.origin.folder
    return open_samples(
        names,
        dataset_dir=Path(config.locate(config.dataset_dir)),
        max_samples=config.max_samples,
        base_dirs=(folder,) if folder else (),
    )


def _tokenised(config: RunConfig, names: list[str], template: ChatTemplate, what: str) -> ArrayRows:
    folder = None if config.cache_dir is None else Path(config.cache_dir)
    settings = CacheSettings(folder, config.overwrite_cache, config.preprocessing_num_workers)
    return tokenised_rows(_open(config, names), template, config.cutoff_len, settings, name=what)
