"""The documented configurations as they are printed, with a tiny model and tiny data in the places that they name."""

from __future__ import annotations

import json
from pathlib import Path

from dataflex.testing import tiny_model, tiny_samples, tiny_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

PRINTED_VLLM_PARAMS = {
    "vllm_tensor_parallel_size": 1,
    "vllm_temperature": 0.0,
    "vllm_top_p": 0.9,
    "vllm_max_tokens": 512,
    "vllm_top_k": 40,
    "vllm_seed": 42,
    "vllm_max_model_len": None,
    "vllm_gpu_memory_utilization": 0.9,
}
"""Parameters of the judge as the published NICE configuration prints them."""


def documented_project(tmp_path: Path, rows: int = 14) -> Path:
    """A working directory with a tiny Llama 3, data in Alpaca form and the documented files.

    ``nice.yaml`` and ``near.yaml`` can be run (the latter needs the matrix that ``components.yaml`` names), and
    ``merge.yaml`` after the former.
    """
    root = tmp_path / "DataFlex"
    (root / "data").mkdir(parents=True)
    tokenizer = tiny_tokenizer(extra_tokens=LLAMA3_TOKENS)
    tokenizer.save_pretrained(root / "model")
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(root / "model")
    for name, count, seed in (("train", rows, 0), ("target", 2, 9)):
        made = [
            {"instruction": sample.messages[0]["content"], "input": "", "output": sample.reference}
            | dict(sample.metadata)
            for sample in tiny_samples(count, seed)
        ]
        (root / "data" / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
    info = {"my_train": {"file_name": "train.json"}, "my_target": {"file_name": "target.json"}}
    (root / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    components = (FIXTURES / "documented_components.yaml").read_text(encoding="utf-8")
    (root / "src/dataflex/configs").mkdir(parents=True)
    (root / "src/dataflex/configs/components.yaml").write_text(components, encoding="utf-8")
    _write(
        root, "nice", {"meta-llama/Llama-3.1-8B": "model", "alpaca_en_demo": "my_train", "alpaca_zh_demo": "my_target"}
    )
    _write(root, "near", {"Qwen/Qwen2.5-0.5B-Instruct": "model", "dataset: alpaca_en_demo": "dataset: my_train"})
    _write(root, "merge", {"meta-llama/Meta-Llama-3-8B-Instruct": "model"})
    return root


def _write(root: Path, name: str, ours: dict[str, str]) -> None:
    """The printed file with our own names in place of the printed ones."""
    text = (FIXTURES / f"documented_{name}.yaml").read_text(encoding="utf-8")
    for printed, own in ours.items():
        assert printed in text
        text = text.replace(printed, own)
    (root / f"{name}.yaml").write_text(text, encoding="utf-8")
