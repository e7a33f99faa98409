"""QLoRA: gradients of rows on quantised weights, runs from a file, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from dataflex.cli import cli
from dataflex.config import load_config
from dataflex.data.collate import collate
from dataflex.errors import ConfigError, ModelError, RolloutError
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.fingerprint import state_fingerprint
from dataflex.models.model import load_model, outline_model, trainable_parameters
from dataflex.models.quantization import Quantization, is_quantized
from dataflex.projection.projector import Projector
from dataflex.rollouts.vllm import _lora_config
from dataflex.testing import stepped_optimizer, tiny_context, tiny_lora, tiny_model, tiny_project

pytestmark = [
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra quant)"),
    # torch complains inside bitsandbytes' own dispatch on CPUs
    pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
WAYS = [Quantization(4), Quantization(4, "fp4", double=False), Quantization(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(hidden_size=64).save_pretrained(path)
    return path


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gradients_of_rows_are_those_of_a_batch_of_one(folder: Path, tmp_path: Path, way: Quantization) -> None:
    model = tiny_lora(load_model(str(folder), quantization=way))
    context = tiny_context(tmp_path)
    context = replace(context, model=model, optimizer=stepped_optimizer(model, 2))
    size = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    features = SampleFeatures(
        context,
        context.train_dataset,
        Projector(size, "identity"),
        gradient_type="sgd",
        adam_variant="adamw",
        batch_tokens=512,
    )
    features.prepare()
    rows = range(len(context.train_dataset))
    found = features.features(rows)
    for row in rows:
        alone = sample_gradient(model, collate([context.train_dataset[row]], 2), context.autocast)
        assert float((found[row] - alone).norm() / alone.norm()) < (1e-4 if way.bits == 4 else 5e-2)


def test_the_way_is_part_of_the_fingerprint_and_of_the_memory(folder: Path) -> None:
    models = [tiny_lora(load_model(str(folder), quantization=way)) for way in WAYS]
    prints = {state_fingerprint(model, torch.no_grad) for model in models}
    assert len(prints) == len(WAYS)
    base = outline_model(str(folder))
    for way, model in zip(WAYS, models, strict=True):
        kept = model.get_base_model().get_memory_footprint()
        adapter = sum(p.numel() * 4 for _, p in trainable_parameters(model))
        whole = sum(p.numel() * p.element_size() for p in base.parameters())
        assert whole - way.saved_bytes(base) == pytest.approx(kept - adapter, rel=0.05)


def test_an_evaluated_model_is_the_model_it_was(folder: Path) -> None:
    model = tiny_lora(load_model(str(folder), quantization=Quantization(4)))
    before = state_fingerprint(model, torch.no_grad)
    ids = torch.arange(5, 21)[None]
    with torch.no_grad():
        first = model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, first)
    assert torch.equal(model(input_ids=ids).logits, first)  # with gradients, too
    assert state_fingerprint(model, torch.no_grad) == before


def test_vllm_is_refused_and_a_missing_package_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lora(load_model(str(folder), quantization=Quantization(4)))
    assert is_quantized(model.get_base_model())
    with pytest.raises(RolloutError, match="vLLM would draw from the weights before they were quantised"):
        _lora_config(model)
    monkeypatch.setattr("dataflex.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"(?s)needs bitsandbytes, which is not installed.*dataflex-sdk\[quant\]"):
        load_model(str(folder), quantization=Quantization(4))


def command(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(part) for part in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_of_a_file(tmp_path: Path) -> None:
    file = tiny_project(tmp_path, component_name="less", quantization_bit=4)
    command("train", file)
    out = tmp_path / "out"
    resumed = [f"output_dir={tmp_path / 'resumed'}", f"resume_from_checkpoint={out / 'checkpoint-4'}"]
    command("train", file, *resumed)
    saved = [path / "adapter_model.safetensors" for path in (out, tmp_path / "resumed")]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    subset = tmp_path / "subset.jsonl"
    command("select", file, "--checkpoint", out / "checkpoint-2", "--num", 8, "--output", subset)
    ranks = pq.read_table(subset.with_suffix(".scores.parquet"))["rank"].to_pylist()
    table = pq.read_table(out / "selections" / "step-2.parquet")
    assert [rank is not None for rank in ranks] == table["chosen"].to_pylist()
    compared = json.loads(command("eval", file, "--json"))["models"]
    assert compared[1]["estimates"]["eval_loss"]["value"] < compared[0]["estimates"]["eval_loss"]["value"]
    done = CliRunner().invoke(cli, ["train", str(file), "quantization_type=fp4", *resumed, "overwrite_output_dir=true"])
    assert done.exit_code == 1
    assert "bnb_4bit_quant_type" in done.output


def test_keys_that_do_not_go_together(tmp_path: Path) -> None:
    file = tiny_project(tmp_path)
    (line,) = load_config(file, ["quantization_type=fp4"]).warnings()
    assert line.endswith("quantization_type: has no effect with quantization_bit null")
    with pytest.raises(ConfigError, match="quantised weights are frozen, and finetuning_type full trains them"):
        load_config(file, ["quantization_bit=4", "finetuning_type=full"])
    with pytest.raises(ConfigError, match=r"'gptq' is not supported \(yet\); supported: bnb"):
        load_config(file, ["quantization_bit=4", "quantization_method=gptq"])
