from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from dataflex.cli import cli
from dataflex.config import load_export_config
from dataflex.errors import ModelError
from dataflex.models import export as exporting
from dataflex.models.export import export
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from helpers.documented import LLAMA3_TOKENS

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Base model, two adapters, and the YAML that the documentation prints, with these paths."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer(extra_tokens=LLAMA3_TOKENS).save_pretrained(tmp_path / "base")
    for seed in (0, 1):
        tiny_lora(tiny_model(), seed=seed).save_pretrained(tmp_path / f"adapter{seed}")
    (tmp_path / "merge.yaml").write_text(
        f"""
model_name_or_path: {tmp_path}/base
adapter_name_or_path: {tmp_path}/adapter0
template: llama3
trust_remote_code: false
export_dir: {tmp_path}/merged
export_size: 5
export_device: cpu # choices: [cpu, auto]
export_legacy_format: false
""",
        encoding="utf-8",
    )
    return tmp_path


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_the_documented_export_answers_like_base_and_adapter(folder: Path) -> None:
    done = CliRunner().invoke(cli, ["export", str(folder / "merge.yaml")])
    assert done.exit_code == 0, done.output
    assert "float32" in done.output
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(logits(merged), logits(tiny_lora(tiny_model())), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(merged), logits(tiny_model()), atol=1e-2)
    template = AutoTokenizer.from_pretrained(folder / "merged").chat_template
    assert "<|start_header_id|>" in template
    names = {path.name for path in (folder / "merged").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert all(path.stat().st_mode & 0o040 for path in (folder / "merged").iterdir())


def test_adapters_are_merged_one_after_the_other(folder: Path) -> None:
    adapters = f"adapter_name_or_path=[{folder}/adapter0, {folder}/adapter1]"
    done = export(load_export_config(folder / "merge.yaml", [adapters]))
    assert done["largest_logit_difference"] < 1e-3
    both = tiny_model()
    for seed in (0, 1):
        both = tiny_lora(both, seed=seed).merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(logits(merged), logits(both), rtol=1e-4, atol=1e-4)


def test_weights_keep_the_type_that_they_are_stored_in(folder: Path) -> None:
    tiny_model().bfloat16().save_pretrained(folder / "base")
    done = export(load_export_config(folder / "merge.yaml"))
    assert done["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="auto").dtype == torch.bfloat16


def test_no_adapter_copies_the_model(folder: Path) -> None:
    done = export(load_export_config(folder / "merge.yaml", ["adapter_name_or_path=null"]))
    assert done["largest_logit_difference"] is None
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder / "merged")), logits(tiny_model()))


def test_a_merge_that_loses_the_adapter_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: object, **options: object) -> torch.nn.Module:
        return tiny_model()

    monkeypatch.setattr("peft.PeftModel.merge_and_unload", forget, raising=False)
    with pytest.raises(ModelError, match=r"adapter0 loses 100% of its effect on the logits \(at most 1% is accepted\)"):
        exporting.export(load_export_config(folder / "merge.yaml"))
    assert not (folder / "merged").exists()


def test_a_folder_that_is_not_empty_is_left_alone(folder: Path) -> None:
    (folder / "merged").mkdir()
    (folder / "merged" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ModelError, match="is not an empty folder"):
        export(load_export_config(folder / "merge.yaml"))
    assert [path.name for path in (folder / "merged").iterdir()] == ["mine.txt"]


def test_pickled_weights_are_refused_with_the_reason(folder: Path) -> None:
    done = CliRunner().invoke(cli, ["export", str(folder / "merge.yaml"), "export_legacy_format=true"])
    assert done.exit_code == 1
    assert "pickled weights run code when they are loaded" in done.output
