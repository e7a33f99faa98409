from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.scripts import load_script
from measuring import lora_gradients, peers
from measuring.goals import outcomes
from measuring.vectors import gaussian

projection = load_script("benchmarks/projection.py")
projection_error = load_script("benchmarks/projection_error.py")


def test_quick_sets_only_what_is_not_given() -> None:
    options = projection.parse(["--quick", "--rows", "2", "4"])
    assert (options.rows, options.parameters, options.rounds) == ([2, 4], [1_000_000], 3)
    assert projection.parse([]).rows == [1, 8, 32]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_a_run_measures_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rows", "1", "32", "--parameters", "2000", "--dim", "4096", "--rounds", "1", "--kinds", "sjlt"]
    results = list(projection.run(projection.parse(arguments), torch.device("cpu"), []))
    assert {(result.rows, result.parameters, result.dim) for result in results} == {(1, 2000, 4096), (32, 2000, 4096)}
    assert all(len(result.times.wall) == 1 and result.per_row() > 0 for result in results)
    assert any("index_add_" in outcome.text for outcome in outcomes(results, amx=False))
    assert "b = 32, p = 2,000, k = 4096" in capsys.readouterr().out


def test_a_package_that_is_not_there_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = peers.Peer("Absent", "no_such_module", "no-such-package", ("cpu",), 1, peers.trak)
    monkeypatch.setattr(peers, "PEERS", (absent, peers.PEERS[-1]))
    assert not list(peers.available("cpu"))
    said = capsys.readouterr().out
    assert "skipped: Absent: pip install no-such-package" in said
    assert "skipped: fast_jl does not run on cpu" in said


def test_errors_of_few_rounds_are_near_theory(tmp_path: Path) -> None:
    arguments = ["--dim", "128", "--rows", "12", "--rounds", "4", "--dense-rounds", "2", "--kinds", "sjlt s=8"]
    options = projection_error.parse([*arguments, "rademacher"])
    summaries = list(
        projection_error.measure(
            options, "heavy tails", lambda seed: gaussian(12, 500, torch.Generator().manual_seed(seed))
        )
    )
    assert [(summary.kind, summary.rounds) for summary in summaries] == [("sjlt s=8", 4), ("rademacher", 2)]
    assert all(0.7 < summary.cosine_rms / summary.cosine_theory < 1.4 for summary in summaries)
    machine = dict.fromkeys(("date", "processor", "cores", "device", "threads", "kernels"), "")
    text = projection_error.markdown(
        {**machine, "vector units": [], "other load": 0.0, "versions": {}}, summaries, options.dim
    )
    assert "heavy tails, p99.9: sjlt s=8 / rademacher" in text


@pytest.mark.slow
def test_lora_gradients_come_from_a_random_llama_without_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATAFLEX_MODELS", str(tmp_path))
    monkeypatch.setattr(lora_gradients, "WARM_UP_STEPS", 2)
    name, raw, normalised = lora_gradients.lora_gradients(3)
    assert name == "random Llama"
    assert "fetch_model.py" in capsys.readouterr().out
    assert raw.grads.shape[0] == 3
    assert raw.values().isfinite().all()
    assert (raw.values() != 0).float().mean() > 0.9  # after a step, both halves of the adapter have gradients
    assert normalised.values().abs().max() < 7.3
    assert not torch.equal(raw.values(), normalised.values())
