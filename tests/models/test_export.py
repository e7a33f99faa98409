from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dataflex.cli import cli
from dataflex.config import load_export_config
from dataflex.errors import ModelError
from dataflex.models import export as exporting
from dataflex.models.export import export
from dataflex.models.model import load_model, trainable_parameters
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from helpers.architectures import configuration
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


ENDS: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "both at once": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "both whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "a few tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
}


def assert_merged(folder: Path, adapted: Any, base: Any) -> None:
    """An adapter that does something is merged: the export answers like it, and unlike the base model."""
    with torch.no_grad():
        for _, parameter in trainable_parameters(adapted):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder / "adapter0")
    expected = logits(adapted)
    done = export(load_export_config(folder / "merge.yaml"))
    assert done["largest_logit_difference"] < 1e-4
    merged = logits(load_model(str(folder / "merged"), precision=None))
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, logits(base), atol=1e-2)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying", "ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ends", ENDS)
def test_embedding_and_head_are_merged_tied_or_not(folder: Path, tied: bool, ends: str) -> None:
    tiny_model(tie_word_embeddings=tied).save_pretrained(folder / "base")
    torch.manual_seed(0)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **ENDS[ends])
    adapted = get_peft_model(tiny_model(tie_word_embeddings=tied), settings)
    assert_merged(folder, adapted, tiny_model(tie_word_embeddings=tied))


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("llama", {"target_modules": "all-linear", "use_dora": True}),
    "rsLoRA": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "DoRA and rsLoRA": ("qwen3", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    "DoRA on transposed layers": ("gpt2", {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}),
    "DoRA on embedding and head": (
        "llama",
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True, "use_rslora": True},
    ),
    "experts": ("mixtral", {"target_modules": "all-linear"}),
    "experts and rsLoRA": ("qwen3_moe", {"target_modules": "all-linear", "use_rslora": True}),
    "experts and head": (
        "qwen3_moe",
        {"target_modules": ["embed_tokens", "lm_head"], "target_parameters": ["experts.gate_up_proj"]},
    ),
    "experts the other way": (
        "gpt_oss",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "one of two parameters": ("qwen2_moe", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_merged(folder: Path, kind: str, tied: bool) -> None:
    family, settings = KINDS[kind]
    fields = configuration(family).to_dict() | {"tie_word_embeddings": tied}

    def base() -> Any:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(type(configuration(family)).from_dict(fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    base().save_pretrained(folder / "base")
    adapted = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings))
    assert_merged(folder, adapted, base())


def test_weights_that_are_shared_stay_shared_where_lora_is_elsewhere(folder: Path) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(folder / "base")
    tiny_lora(tiny_model(tie_word_embeddings=True)).save_pretrained(folder / "adapter0")
    export(load_export_config(folder / "merge.yaml"))
    assert load_model(str(folder / "merged")).config.tie_word_embeddings
