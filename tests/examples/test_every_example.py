"""Every configuration and script of ``examples/`` runs in a test, or is named here with the reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import dataflex.retrieval.index
from dataflex.cli import cli
from dataflex.testing import tiny_model, tiny_tokenizer
from helpers.encoders import WordEncoder
from helpers.scripts import ROOT

EXAMPLES = ROOT / "examples"
SMALL = [
    *("warmup_step=1", "update_step=1", "max_samples=24", "bf16=false", "eval_strategy=no", "save_steps=2"),
    *("per_device_train_batch_size=2", "gradient_accumulation_steps=1", "cutoff_len=128"),
]
"""What makes any of the runs short."""
HERE = {
    "quickstart/nice.yaml": ["max_samples=16", "update_times=1", "component_params.max_new_tokens=40", "lora_rank=2"],
    "train_lora/mixers/doremi.yaml": ["update_times=1", "lora_rank=2"],
    "train_lora/selectors/less.yaml": ["update_times=1", "lora_rank=2"],
    "train_lora/selectors/random.yaml": ["update_times=1", "lora_rank=2"],
    "train_lora/weighters/loss.yaml": ["train_step=2", "lora_rank=2"],
}
"""Training runs of this file, with what else makes them short."""
NEAR = {"near/offline.yaml", "near/near.yaml", "train_lora/selectors/near.yaml"}
"""Run here one after the other."""
ELSEWHERE = {
    "merge_lora/cpu.yaml": "test_train_lora.py",
    "near/fetch_encoder.py": "test_near.py",
    "quickstart/fetch_model.py": "test_fetch_model.py",
    "quickstart/make_data.py": "test_quickstart_data.py",
    "quickstart/run.py": "test_run.py",
    **{f"train_lora/cpu/{name}.yaml": "test_train_lora.py" for name in ("doremi", "less", "near", "nice", "random")},
    "train_lora/cpu/weights.yaml": "test_train_lora.py",
}
"""Run by another test of this folder, which names them."""
PLUGIN = "plugin/"
"""The example plugin is installed, used and tested by test_plugin.py as a whole."""
NOT_RUN = {
    "accelerate/fsdp.yaml": "is accelerate's own; tests/training/test_distributed.py launches two processes with it",
    "deepspeed/ds_z0_config.json": "is plain data parallelism; tests/training/test_optimization.py reads the file",
    "deepspeed/ds_z2_config.json": "DeepSpeed is built from source; tests/training/test_optimization.py reads the file",
    "deepspeed/ds_z3_config.json": "shards as fsdp: true does; tests/integration/test_documented_run.py launches it",
    "merge_lora/llama3_lora_sft.yaml": "merges what selectors/nice.yaml leaves; test_train_lora.py loads it",
    "train_lora/selectors/nice.yaml": "asks a judge in vLLM on a GPU; test_train_lora.py loads it, cpu/nice.yaml runs",
}


def train(file: str, work: Path, *more: str) -> Path:
    """Train on a tiny model; returns the run's folder."""
    tiny_tokenizer(extra_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")).save_pretrained(
        work / "model"
    )
    tiny_model(vocab_size=400).save_pretrained(work / "model")
    out = work / "out"
    command = ["train", f"examples/{file}", f"model_name_or_path={work}/model", f"output_dir={out}", *SMALL, *more]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert (out / "adapter_model.safetensors").is_file()
    return out


def test_every_example_is_run_or_says_why_not() -> None:
    files = {
        path.relative_to(EXAMPLES).as_posix()
        for path in EXAMPLES.rglob("*")
        if path.suffix in {".py", ".yaml", ".json", ".sh"} and path.parent.name not in {"data", "__pycache__"}
    }
    named = [{*HERE}, NEAR, {*ELSEWHERE}, {*NOT_RUN}]
    assert {file for file in files if not file.startswith(PLUGIN)} == set().union(*named)
    assert sum(map(len, named)) == len(set().union(*named)), "a file stands in two lists"
    for file, test in ELSEWHERE.items():
        assert Path(file).stem in (Path(__file__).parent / test).read_text(encoding="utf-8"), f"{test} runs no {file}"


@pytest.mark.integration
@pytest.mark.parametrize("file", HERE)
def test_it_trains_a_tiny_model(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out = train(file, tmp_path, *HERE[file])
    if "mixers" in file:
        assert (out / "mixtures" / "step-1.json").is_file()
    elif "weighters" in file:
        assert '"weight_median"' in (out / "trainer_log.jsonl").read_text(encoding="utf-8")
    else:
        assert [path.name for path in (out / "selections").iterdir()] == ["step-1.parquet"]


@pytest.mark.integration
def test_near_is_offline_and_then_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(dataflex.retrieval.index, "open_encoder", lambda model, settings: WordEncoder())
    matrix = tmp_path / "top_indices.npy"
    done = CliRunner().invoke(cli, ["near", "examples/near/offline.yaml", f"save_indices_path={matrix}"])
    assert done.exit_code == 0, done.output
    for number, file in enumerate(("near/near.yaml", "train_lora/selectors/near.yaml")):
        work = tmp_path / str(number)
        indices = f"component_params.indices_path={matrix}"
        out = train(file, work, "max_samples=null", "update_times=1", "lora_rank=2", "template=chatml", indices)
        assert [path.name for path in (out / "selections").iterdir()] == ["step-1.parquet"]
