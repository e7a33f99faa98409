from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from dataflex.curriculum.schedule import Schedule
from dataflex.data.dataset import Example, TokenizedDataset
from dataflex.errors import ModelError, TrainingError
from dataflex.models.bounds import Bounds, examine
from dataflex.offline.context import build_context
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_samples, tiny_tokenizer
from dataflex.training.arguments import TrainingArguments
from dataflex.training.trainer import Trainer
from dataflex.utils.distributed import Ranks
from helpers.families import family_lora, family_model
from helpers.runs import tiny_nice

BERT = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
BERT |= {"num_hidden_layers": 1, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16}
GPT |= {"bos_token_id": 1, "eos_token_id": 2}
BART = {"vocab_size": 64, "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
BART |= {"max_position_embeddings": 16, "pad_token_id": 1}
LLAMA = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS = {
    "GPT2": GPT,
    "GPTJ": GPT | {"rotary_dim": 4},
    "CodeGen": GPT | {"rotary_dim": 4},
    "CTRL": GPT | {"dff": 64},
    "OPT": BERT | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "GPTNeo": BERT | {"num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]},
    "BioGpt": BERT,
    "Bart": BART,
    "Bert": BERT | {"is_decoder": True},
    "Mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 16},
    "XGLM": {"vocab_size": 64, "d_model": 32, "num_layers": 1, "attention_heads": 4, "ffn_dim": 64}
    | {"max_position_embeddings": 16},
    "Llama": BERT,
    "GPTNeoX": BERT,
    "Phi": BERT,
    "Falcon": BERT,
}


@pytest.mark.parametrize("name", MODELS)
def test_positions_beyond_the_bound_fail_where_they_are_looked_up(name):
    config = getattr(transformers, f"{name}Config")(**MODELS[name])
    model = AutoModelForCausalLM.from_config(config).eval()
    bounds = Bounds.of(model)
    assert (bounds.inputs, bounds.outputs, bounds.positions) == (64, 64, 16)
    with torch.no_grad():
        model(input_ids=torch.full((1, 16), 3))
        with pytest.raises((IndexError, RuntimeError)) if bounds.table else nullcontext():
            model(input_ids=torch.full((1, 17), 3))
    with torch.device("meta"):
        assert Bounds.of(AutoModelForCausalLM.from_config(config)) == bounds


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "linear", "factor": 2.0}, 1024),
        ({"rope_type": "default"}, 512),
        (LLAMA | {"factor": 32.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_scaled_rotary_positions_reach_further(rope, positions):
    assert Bounds.of(tiny_model(rope_parameters=rope | {"rope_theta": 10000.0})).positions == positions


def test_models_without_positions_and_strangers_have_no_bound():
    bloom = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    assert Bounds.of(AutoModelForCausalLM.from_config(bloom)) == Bounds(64, 64, None, table=False)
    assert Bounds.of(nn.Linear(2, 2)) == Bounds(None, None, None, table=False)
    assert Bounds.of(tiny_lora(tiny_model())) == Bounds(384, 384, 512, table=False)


def dataset(*rows):
    """Tokenised rows of given ids and labels."""
    samples = tiny_samples(len(rows))
    return TokenizedDataset(Example(sample, ids, labels) for sample, (ids, labels) in zip(samples, rows, strict=True))


def test_ids_and_labels_beyond_the_vocabulary_are_named():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<a>"])
    rows = dataset(([5, 384], [-100, 384]), ([5, 6], [-100, 6]), ([5, 6], [-100, -7]), ([-1, 6], [-100, 6]))
    found = examine(tiny_model(), tokenizer, {"training set": rows, "evaluation set": None})
    (problem,) = found.problems
    assert problem.startswith(
        "training set: 3 of 4 rows use tokens beyond the model's embedding of 384 rows (the tokenizer has 385 tokens): "
        "row 0 uses token 384 ('<a>'), row 2 uses token -7, row 3 uses token -1; take the model's own tokenizer, or "
    )
    assert examine(tiny_model(), tokenizer, {"training set": rows[1:2]}).problems == []


def test_a_padding_token_that_was_added_is_named():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    (problem,) = examine(tiny_model(), tokenizer, {"training set": tiny_dataset(2)}).problems
    assert problem.startswith("the padding token, token 384 ('[PAD]'), is beyond the model's embedding of 384 rows; ")


def trainer(tmp_path, model, tokenizer=None, selector=None, **args):
    tokenizer = tokenizer or tiny_tokenizer()
    return Trainer(
        model,
        tokenizer,
        tiny_dataset(8, tokenizer=tokenizer),
        tiny_dataset(4, seed=50, tokenizer=tokenizer),
        selector,
        schedule=Schedule(1, 1, 1) if selector else Schedule(1),
        args=TrainingArguments(output_dir=tmp_path / "out", template="chatml", **args),
    )


def test_the_trainer_refuses_tokens_and_rows_that_the_model_has_no_room_for(tmp_path):
    with pytest.raises(TrainingError) as caught:
        trainer(tmp_path, family_model("gpt2", n_positions=16))
    assert "training set: 8 of 8 are longer than the 16 positions that the model has" in caught.value.message
    assert "evaluation set: 4 of 4 are longer" in caught.value.message
    assert "cutoff_len: 16 cuts them" in caught.value.message
    with pytest.raises(TrainingError, match="training set: 8 of 8 rows use tokens beyond the model's embedding of 100"):
        trainer(tmp_path, tiny_lora(tiny_model(vocab_size=100)))
    assert not (tmp_path / "out").exists()


def test_prompts_with_their_longest_answers_must_fit(tmp_path):
    model = family_lora("gpt2")  # 128 positions
    metric = {"eval_metric": {"metric": "exact_match"}, "eval_strategy": "steps", "eval_steps": 1}
    trainer(tmp_path, model, **metric, eval_max_new_tokens=60)
    with pytest.raises(TrainingError, match=r"than the 128 positions .*; lower eval_max_new_tokens"):
        trainer(tmp_path, model, **metric, eval_max_new_tokens=120)
    trainer(tmp_path, model, selector=tiny_nice(max_new_tokens=60, gradient_type="sgd"))
    with pytest.raises(ModelError, match=r"than the 128 positions .*; lower max_new_tokens or max_prompt_"):
        trainer(tmp_path, model, selector=tiny_nice(max_new_tokens=120, gradient_type="sgd")).train()
    assert not (tmp_path / "out").exists()


def test_rows_beyond_rotary_positions_are_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "dataflex"):
        trainer(tmp_path, tiny_lora(tiny_model(max_position_embeddings=16)))
    texts = [record.message for record in caplog.records]
    assert len(texts) == 2
    assert texts[0].startswith("training set: 8 of 8 are longer than the 16 positions that the model was trained with")
    caplog.clear()
    trainer(tmp_path, tiny_lora(tiny_model()))
    assert caplog.records == []


def test_a_selection_without_training_is_checked_too(tmp_path):
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match="candidates: 4 of 4 rows use tokens beyond the model's embedding of 100 rows"):
        build_context(
            tiny_model(vocab_size=100),
            tokenizer,
            None,
            tiny_dataset(4),
            None,
            num_samples=2,
            seed=0,
            output_dir=tmp_path,
            precision="fp32",
            ranks=Ranks(),
        )
