"""Every causal-LM family of transformers: gradients, losses and answers of a batch are those of a batch of one."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dataflex.data.collate import collate
from dataflex.errors import RolloutError
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import mean_losses
from dataflex.projection.projector import Projector
from dataflex.rollouts import Prompt, Sampling, sample_answers
from dataflex.testing import tiny_context, tiny_dataset, tiny_tokenizer
from helpers.architectures import ALONE, BATCHED, EXCLUDED, FAMILIES, FLOAT32, LIMIT, PADDED_LEFT, SILENT, architecture
from helpers.whole import one_by_one, relative_errors, streamed_batch

QUICK = {"falcon", "gemma2", "gpt_neox/dynamic", "mamba", "mixtral", "opt", "phi3/longrope", "qwen2_moe", "qwen3_next"}
LINES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in FAMILIES]
DATASET = tiny_dataset(6, seed=2)
"""Rows of 21 to 34 tokens, on both sides of the limit of the models that have one."""
PROMPTS = [Prompt(str(n), list(range(5, 5 + n))) for n in (3, 7, LIMIT + 3)]


@pytest.fixture(autouse=True)
def _quiet():
    """What other packages warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_every_family_has_a_line_or_a_reason():
    families = {name.partition("/")[0] for name in FAMILIES}
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert sorted(known - families - set(EXCLUDED)) == [], "a new family: one more line in helpers/architectures.py"
    assert not families & set(EXCLUDED)


@pytest.mark.parametrize("name", LINES)
def test_gradients_and_losses_are_those_of_a_batch_of_one(name, tmp_path, caplog):
    model, tolerance = architecture(name), 1e-4 if name in FLOAT32 else 1e-6
    context = tiny_context(tmp_path, model=model, optimizer=None, train_dataset=DATASET)
    features = SampleFeatures(
        context, DATASET, Projector(256), gradient_type="sgd", adam_variant="adamw", batch_tokens=10_000
    )
    features.prepare()
    batches = list(features.layout().rows_of())
    announced = "one sample at a time" in caplog.text
    assert (ALONE if announced else BATCHED) == FAMILIES[name][0], caplog.text
    assert len(batches) < len(DATASET)
    for batch in batches:
        expected = one_by_one(model, [DATASET[row] for row in batch])
        assert expected.isfinite().all()
        assert expected.norm() > 0
        if not announced:
            found = streamed_batch(model, collate([DATASET[row] for row in batch], 2))
            assert max(relative_errors(found, expected)) < tolerance
    with torch.no_grad():
        alone = [float(mean_losses(model, collate([example], 2))) for example in DATASET]
        together = mean_losses(model, collate(list(DATASET), 2)).tolist()
    assert together == pytest.approx(alone, rel=tolerance) or name in PADDED_LEFT


@pytest.mark.parametrize("name", LINES)
def test_answers_are_those_of_a_batch_of_one_or_refused(name):
    if name in SILENT:
        pytest.skip("transformers' own generate fails")
    model = architecture(name).float()

    def drawn(prompts):
        return sample_answers(
            model,
            tiny_tokenizer(),
            prompts,
            Sampling(1.0, 4),
            answers_per_prompt=1,
            stop_token_ids={1},
            seed=1,
            step=1,
            batch_size=8,
            autocast=nullcontext,
            show_progress=False,
        )

    try:
        together, alone = drawn(PROMPTS), [drawn([prompt])[0] for prompt in PROMPTS]
    except RolloutError:  # said, with the difference
        return
    for found, expected in zip(together, alone, strict=True):
        assert found.token_ids == expected.token_ids
        assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-3)
