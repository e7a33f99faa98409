"""Whether rows and prompts stay within the tokens and positions that the model has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from dataflex.config import RunConfig
from dataflex.data.templates import ChatTemplate
from dataflex.doctor.check import Check
from dataflex.doctor.look import Look
from dataflex.models.bounds import Bounds, Findings
from dataflex.selectors.base import Selector

NAME = "tokens and positions"


def bounds_checks(
    config: RunConfig,
    bounds: Bounds,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    sets: Mapping[str, Look],
    selector: Selector[Any] | None,
) -> Iterator[Check]:
    """Compare what was looked at with what the model has room for.

    Args:
        config: The run.
        bounds: What its model has room for.
        tokenizer: Its tokenizer.
        template: Renders the prompts.
        sets: Rows that were looked at, by the name of their set; that of the evaluation set is ``evaluation set``.
        selector: Its selector, if it has one.
    """
    found = Findings()
    found.check_padding(bounds, tokenizer)
    for name, seen in sets.items():
        found.check_ids(bounds, tokenizer, name, seen.encoded, [sample.id for sample in seen.samples])
        found.check_lengths(bounds, name, seen.lengths, f"cutoff_len: {bounds.positions} cuts them")
    if "evaluation set" in sets:
        _check_answers(found, config, bounds, template, sets["evaluation set"], selector)
    yield from (Check(NAME, "fail", problem) for problem in found.problems)
    yield from (Check(NAME, "warn", warning) for warning in found.warnings)
    if found.problems or found.warnings:
        return
    if bounds.inputs is not None and len(tokenizer) > bounds.inputs:
        detail = f"the tokenizer has {len(tokenizer):,} tokens, the model's embedding {bounds.inputs:,} rows; "
        fix = "take the model's own tokenizer, or resize the embedding of the model and save it"
        yield Check(NAME, "warn", detail + "no row that was looked at uses one beyond", fix)
        return
    positions = "" if bounds.positions is None else f", {bounds.positions:,} positions"
    yield Check(NAME, "pass", f"embedding of {bounds.inputs or 0:,} rows{positions}")


def _check_answers(
    found: Findings,
    config: RunConfig,
    bounds: Bounds,
    template: ChatTemplate,
    seen: Look,
    selector: Selector[Any] | None,
) -> None:
    """Prompts with the longest answers that the metric and the selector draw to them."""
    asked = []
    if config.eval_metric is not None:
        asked.append((config.cutoff_len, config.eval_max_new_tokens, "lower eval_max_new_tokens"))
    settings: Any = None if selector is None else selector.config
    if hasattr(settings, "max_new_tokens") and hasattr(settings, "max_prompt_length"):
        way_on = "lower max_new_tokens or max_prompt_length"
        asked.append((settings.max_prompt_length, settings.max_new_tokens, way_on))
    for longest, new_tokens, way_on in asked:
        prompts = [template.encode_prompt(sample.prompt, sample.tools, longest) for sample in seen.samples]
        lengths = [len(prompt) + new_tokens for prompt in prompts]
        found.check_lengths(bounds, "evaluation prompts with their longest answers", lengths, way_on)
