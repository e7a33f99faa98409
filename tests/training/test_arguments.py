"""Arguments as users of transformers write them: taken over where they mean the same, else an error with the name."""

from __future__ import annotations

import logging
import traceback

import datasets
import pytest
import torch
import transformers

import dataflex
from dataflex.curriculum.schedule import Schedule
from dataflex.errors import ConfigError, ModelError, SelectionError, TrainingError
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.arguments import TrainingArguments
from dataflex.training.inputs import as_arguments
from dataflex.training.trainer import Trainer
from helpers import foreign
from helpers.runs import tiny_nice

SHORT = Schedule(warmup_step=2, update_step=1, update_times=1)


def chat_tokenizer():
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return tiny_tokenizer(chat_template=template)


def trainer(args, **options):
    defaults = {"train_dataset": tiny_dataset(8), "eval_dataset": tiny_dataset(4, seed=9), "schedule": SHORT}
    if "tokenizer" not in options:
        defaults["processing_class"] = chat_tokenizer()
    return Trainer(tiny_lora(tiny_model()), args=args, **(defaults | options))


def theirs(folder, **values):
    return transformers.TrainingArguments(output_dir=str(folder), **values)


def test_arguments_of_transformers_give_the_run_that_ours_give(tmp_path, caplog):
    values = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "lr_scheduler_type": "linear", "seed": 5}
    with caplog.at_level(logging.WARNING):
        first = trainer(
            theirs(tmp_path / "a", logging_steps=1, report_to="none", warmup_steps=2, **values),
            selector=RandomSelector(),
        )
        results = first.train()
    own = TrainingArguments(
        output_dir=tmp_path / "b", logging_steps=1, warmup_steps=2, optim="adamw_torch_fused", **values
    )
    assert results["train_loss"] == trainer(own, selector=RandomSelector()).train()["train_loss"]
    assert (first.total_steps, first.args.lr_scheduler_type, first.args.warmup_steps) == (3, "linear", 2)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []
    assert torch.isfinite(torch.tensor(results["train_loss"]))


def test_what_has_no_counterpart_is_named_all_at_once(tmp_path):
    args = theirs(
        tmp_path, optim="adagrad", label_smoothing_factor=0.1, num_train_epochs=2, logging_steps=0.5, report_to="none"
    )
    with pytest.raises(ConfigError) as caught:
        trainer(args, selector="random")
    text = str(caught.value)
    for part in ("optim='adagrad'", "label_smoothing_factor=0.1", "num_train_epochs=2", "logging_steps=0.5"):
        assert part in text
    assert "df.TrainingArguments" in text


def test_what_only_concerns_their_loop_is_said_and_defaults_are_not(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer(theirs(tmp_path, report_to="none"), selector="random")
        as_arguments(theirs(tmp_path, report_to="none", eval_strategy="epoch"), scheduled=False)  # sets do_eval
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []
    with caplog.at_level(logging.WARNING):
        trainer(theirs(tmp_path, report_to="none", dataloader_num_workers=2, save_strategy="no"), selector="random")
    assert "do not act here" in caplog.text
    assert "dataloader_num_workers" in caplog.text
    assert "save_strategy (checkpoints come every save_steps" in caplog.text


def test_arguments_of_trl_mean_what_is_done_here_or_are_refused(tmp_path, caplog):
    trl = pytest.importorskip("trl", reason="TRL is not installed (the dev extra brings it)")

    def taken(**values):
        arguments = {"bf16": False, "use_cpu": True, "report_to": "none", **values}
        return as_arguments(trl.SFTConfig(output_dir=str(tmp_path), **arguments), scheduled=True)

    with caplog.at_level(logging.WARNING):
        found = taken(assistant_only_loss=True, completion_only_loss=True, max_length=99, padding_free=True)
    assert (found.cutoff_len, found.bf16, found.disable_shuffling) == (99, False, False)
    assert "only_loss" not in caplog.text
    assert {"cutoff_len", "bf16"} <= found.model_fields_set
    with pytest.raises(ConfigError, match="completion_only_loss=False has no counterpart here"):
        taken(completion_only_loss=False)
    with pytest.raises(ConfigError, match="packing=True has no counterpart here: samples are trained one by one"):
        taken(packing=True)


def test_the_order_of_rows_as_transformers_names_it(tmp_path):
    args = theirs(tmp_path, train_sampling_strategy="sequential", report_to="none")
    assert as_arguments(args, scheduled=True).disable_shuffling
    with pytest.raises(ConfigError, match="'group_by_length' goes by the rows' lengths, expected random or sequential"):
        as_arguments(theirs(tmp_path, train_sampling_strategy="group_by_length"), scheduled=True)


def test_rows_as_trainers_of_transformers_take_them(tmp_path):
    args = TrainingArguments(output_dir=tmp_path, template="chatml")
    rows, targets = foreign.rows(), datasets.Dataset.from_list(foreign.targets())
    found = trainer(args, train_dataset=rows, eval_dataset=targets, selector="less")
    assert [example.labels for example in found.train_dataset] == [row["labels"] for row in rows]
    assert [example.input_ids for example in found.eval_dataset] == targets["input_ids"]
    with pytest.raises(TrainingError, match="'nice' reads the text of rows, and the evaluation set has tokens alone"):
        trainer(args, train_dataset=rows, eval_dataset=targets, selector=tiny_nice())


def test_max_steps_is_the_length_of_the_run(tmp_path):
    assert trainer(theirs(tmp_path, max_steps=7, report_to="none"), selector="random").total_steps == 7
    assert trainer(TrainingArguments(output_dir=tmp_path, max_steps=7), selector="random").total_steps == 7
    assert trainer(TrainingArguments(output_dir=tmp_path, max_steps=-1), selector="random").total_steps == 3
    plain = TrainingArguments(output_dir=tmp_path, max_steps=5, per_device_train_batch_size=2)
    assert trainer(plain, schedule=None).total_steps == 5


def test_no_schedule_is_passes_over_the_data(tmp_path):
    args = {"per_device_train_batch_size": 3, "num_train_epochs": 2}
    assert trainer(TrainingArguments(output_dir=tmp_path, **args), schedule=None).total_steps == 6
    assert trainer(theirs(tmp_path, report_to="none", **args), schedule=None).total_steps == 6
    with pytest.raises(TrainingError, match=r"needs a schedule.*\n.*schedule=df.Schedule"):
        trainer(TrainingArguments(output_dir=tmp_path), schedule=None, selector="random")


@pytest.mark.parametrize(("given", "kept"), [("none", []), (["none"], []), (None, []), ("wandb", ["wandb"])])
def test_report_to_as_transformers_takes_it(tmp_path, given, kept):
    assert TrainingArguments(output_dir=tmp_path, report_to=given).report_to == kept


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lr": 1e-4}, "it is called learning_rate here"),
        ({"evaluation_strategy": "steps"}, "it is called eval_strategy here"),
        ({"max_seq_length": 10}, "it is called cutoff_len here"),
        ({"warmup_step": 10}, "df.Schedule(warmup_step="),
        ({"learning_rat": 1e-4}, "did you mean 'learning_rate'?"),
        ({"precision": "bf16"}, "bf16=True"),
    ],
)
def test_an_unknown_argument_gets_the_name_to_use(tmp_path, wrong, said):
    with pytest.raises(ConfigError) as caught:
        TrainingArguments(output_dir=tmp_path, **wrong)
    assert said in str(caught.value)


def test_a_selector_by_name_and_what_is_none(tmp_path):
    args = TrainingArguments(output_dir=tmp_path)
    assert isinstance(trainer(args, selector="less").selector, LessSelector)
    with pytest.raises(SelectionError, match=r"got the class LessSelector\n.*df.LessSelector\("):
        trainer(args, selector=LessSelector)
    with pytest.raises(ConfigError, match="got str"):
        trainer("out")


def test_both_names_of_the_tokenizer(tmp_path):
    args = {"output_dir": tmp_path}
    tokenizer = chat_tokenizer()
    assert trainer(args, tokenizer=tokenizer, schedule=None).tokenizer is tokenizer
    with pytest.raises(TypeError, match="processing_class and tokenizer, which are the same"):
        trainer(args, tokenizer=tokenizer, processing_class=tokenizer)
    options = {"num_samples": "50%", "selector": "random", "train_dataset": tiny_dataset(8)}
    model = tiny_lora(tiny_model())
    for name in ("tokenizer", "processing_class"):
        assert len(dataflex.select(model, **{name: tokenizer}, **options).indices) == 4


def test_what_is_no_model_or_tokenizer_is_said(tmp_path):
    args = TrainingArguments(output_dir=tmp_path)
    with pytest.raises(ModelError, match=r"expected a torch module, got str\n"):
        Trainer("HuggingFaceTB/SmolLM2-135M", chat_tokenizer(), tiny_dataset(4), args=args)
    with pytest.raises(ModelError, match=r"expected a tokenizer, got str"):
        trainer(args, processing_class="gpt2")
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match=r"no padding token\n.*tokenizer.pad_token = tokenizer.eos_token"):
        trainer(args, processing_class=tokenizer)


def test_numbers_are_finite_so_that_checkpoints_can_note_them(tmp_path):
    with pytest.raises(ConfigError, match=r"max_grad_norm: expected a finite number, got inf"):
        TrainingArguments(output_dir=tmp_path, max_grad_norm=float("inf"))


def test_arguments_of_training_given_to_select_name_the_one_to_use():
    with pytest.raises(ConfigError, match='bf16 is no argument here: precision="bf16"'):
        dataflex.select(tiny_lora(tiny_model()), chat_tokenizer(), tiny_dataset(8), num_samples="5%", bf16=True)
    with pytest.raises(SelectionError, match=r"expected a number \(500\) or a share \(5%\), got 'five'"):
        dataflex.select(
            tiny_lora(tiny_model()), chat_tokenizer(), tiny_dataset(8), num_samples="five", selector="random"
        )


def test_a_traceback_of_wrong_arguments_does_not_show_a_key(tmp_path):
    key = "sk-" + "planted"
    with pytest.raises(ConfigError, match="expected the name of an environment variable") as caught:
        TrainingArguments(output_dir=tmp_path, swanlab={"api_key": key})
    assert key not in "".join(traceback.format_exception(caught.value))
