"""What can be known to go wrong, or never to act, before the first step of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib.util import find_spec

from torch import nn
from transformers import PreTrainedTokenizerBase

from dataflex.config.deepspeed import zero_stage
from dataflex.config.fsdp import conflicts, launched_fsdp
from dataflex.config.idle import optimizer_warnings, step_warnings
from dataflex.config.values import LOSS, evaluated_keys
from dataflex.curriculum.curriculum import Curriculum
from dataflex.curriculum.mixing import MixtureCurriculum
from dataflex.curriculum.schedule import Schedule, longest_selection
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.templates import ChatTemplate
from dataflex.errors import DataflexError, TrainingError
from dataflex.models.bounds import Bounds, Findings, examine
from dataflex.training.arguments import TrainingArguments
from dataflex.training.component import Component, component_problems
from dataflex.training.evaluation import AnswerMetric


def check_component(
    args: TrainingArguments,
    schedule: Schedule,
    component: Component,
    training: TokenizedDataset,
    evaluation: TokenizedDataset | None,
    processes: int,
) -> None:
    """Find what is wrong with a run's selections, mixtures or weights and needs no model, before one is loaded.

    Args:
        args: Arguments of the run.
        schedule: Its schedule.
        component: What decides in it.
        training: Training set.
        evaluation: Evaluation set.
        processes: Processes of the run.

    Raises:
        TrainingError: They do not fit the data.
        DataflexError: The selector's own files do not.
    """
    global_batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    problems = list(component_problems(component, schedule, args, training, evaluation, global_batch))
    if problems:
        raise TrainingError("; ".join(problems))
    if component.selector is not None:
        component.selector.check_data(training.samples)


def evaluation_problems(
    args: TrainingArguments, eval_dataset: TokenizedDataset | None, metric: AnswerMetric | None
) -> Iterator[str]:
    """Why the evaluations of a run cannot be made."""
    known = evaluated_keys(args.eval_metric)
    best = args.metric_for_best_model
    if best not in known:
        yield f"metric_for_best_model {best!r} is unknown; known: {', '.join(known)}"
    if args.eval_strategy == "no":
        return
    if not eval_dataset:
        yield f"eval_strategy {args.eval_strategy!r} needs an evaluation set (eval_dataset)"
    elif best == LOSS and not any(example.num_labels for example in eval_dataset):
        yield "no evaluation sample has an answer to compute eval_loss on; set eval_metric and metric_for_best_model"
    if eval_dataset and metric is not None:
        try:
            metric.check(eval_dataset.samples)
        except DataflexError as error:
            yield f"eval_metric: {error.message}"


def model_findings(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    training: TokenizedDataset | None,
    evaluation: TokenizedDataset | None,
    metric: AnswerMetric | None,
) -> Findings:
    """Which rows and prompts have tokens, or are longer, than the model has room for.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        template: Renders the prompts.
        training: Training set.
        evaluation: Evaluation set.
        metric: The metric of the model's answers to the evaluation set; None: there is none.
    """
    found = examine(model, tokenizer, {"training set": training, "evaluation set": evaluation})
    if metric is not None and evaluation:
        prompts = metric.prompts(template, evaluation.samples)
        lengths = [len(prompt.token_ids) + metric.max_new_tokens for prompt in prompts]
        found.check_lengths(
            Bounds.of(model), "evaluation prompts with their longest answers", lengths, "lower eval_max_new_tokens"
        )
    return found


def sharding_problems(args: TrainingArguments, processes: int) -> Iterator[str]:
    """Why optimizer or parameters cannot be sharded."""
    if launched_fsdp(os.environ) is not None:
        for key, problem in conflicts(
            True, fp16=args.fp16, optim=args.optim, deepspeed=args.deepspeed, quantization=None
        ):
            yield f"accelerate launch shards the parameters (FSDP): {key}: {problem}"
    if args.deepspeed and zero_stage(args.deepspeed) in (1, 2) and processes > 1 and find_spec("deepspeed") is None:
        yield "deepspeed is not installed (pip install --no-build-isolation deepspeed)"


def idle_settings(args: TrainingArguments, curriculum: Curriculum) -> list[tuple[str, str]]:
    """Arguments that never act in a run of this length: the argument, and why."""
    steps = curriculum.total_steps
    every = args.eval_steps if args.eval_strategy == "steps" else curriculum.epoch_steps
    selects = longest_selection(curriculum.phases) > 0
    found = [*step_warnings(args, steps, math.ceil(steps / every), selects=selects), *optimizer_warnings(args)]
    if not isinstance(curriculum, MixtureCurriculum):
        keys = ("domain_column", "mixture_sample_rule", "init_mixture_proportions")
        found += [(key, "has no effect without a mixer") for key in keys if getattr(args, key) is not None]
    return found
