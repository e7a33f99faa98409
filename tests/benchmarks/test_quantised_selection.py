"""What QLoRA chooses beside full precision (``benchmarks/efficacy/quantised.py``)."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from dataflex.testing import tiny_model, tiny_tokenizer
from efficacy import quantised
from efficacy.pools import RIGHT, Sizes, build
from helpers.scripts import ROOT

pytestmark = [
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra quant)"),
    pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes"),  # torch complains inside its dispatch on CPUs
]
SMALL = Sizes(right=6, wrong=4, family=2, noise=4, prompts=4, test=1)


def test_both_kinds_of_weights_choose_and_are_compared(tmp_path: Path, monkeypatch, capsys) -> None:
    tiny_model(hidden_size=64).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(quantised, "Sizes", lambda: SMALL)
    file = tmp_path / "results.json"
    options = ["--model", str(tmp_path / "model"), "--seeds", "2", "--chosen", "10", "--json", str(file)]
    assert quantised.main(options) == 0
    [found] = json.loads(file.read_text())
    full, four = ({*found["indices"][name]} for name in ("fp32", "nf4"))
    assert len(full) == len(four) == 10
    assert found["overlap"] == len(full & four) / 10
    assert found["right"]["nf4"] == len(four & {*build(2, SMALL).places(RIGHT)})
    assert found["weights"]["nf4"] < 0.6 * found["weights"]["fp32"]
    assert 0 < found["gradients"] < 1e-4
    assert 0 < found["features"] < 1e-4
    assert f"| 2 | {found['overlap']:.2f} of 10 |" in capsys.readouterr().out


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_four_bits_choose_what_full_precision_chooses(seed: int) -> None:
    model = Path(os.environ.get("DATAFLEX_MODELS") or ROOT / "models") / "SmolLM2-135M-Instruct"
    assert (model / "config.json").exists(), f"no model in {model}: run examples/quickstart/fetch_model.py"
    found = quantised.measure(seed, model, Sizes(), 28)
    assert found["overlap"] >= 0.8
    assert found["gradients"] <= 1e-4
    assert found["features"] <= 1e-4
