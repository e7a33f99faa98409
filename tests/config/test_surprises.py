"""Values that YAML 1.1 reads otherwise than they look are said; inputs without end are refused in bounded time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dataflex.config import load_config
from dataflex.config.document import parse_yaml
from dataflex.config.paths import LARGEST, read_text
from dataflex.data.sources import load_samples
from dataflex.data.templates import ChatTemplate
from dataflex.errors import ConfigError, DataError, RewardError
from dataflex.retrieval.embeddings.text import TextTemplate
from dataflex.rewards.judge import JudgeConfig, JudgePrompt
from dataflex.testing import tiny_samples, tiny_tokenizer
from dataflex.types import RewardRequest
from dataflex.utils import deadline

RUN = "model_name_or_path: m\ndataset: d\noutput_dir: o\n"


def warned(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    file = tmp_path / "run.yaml"
    file.write_text(RUN + text, encoding="utf-8")
    return [line.replace(f"{tmp_path}/", "") for line in load_config(file, overrides).warnings()]


def test_octal_and_base_60_are_said_with_line_and_value(tmp_path):
    assert warned(tmp_path, "seed: 042\nsave_steps: 1:30\n")[:2] == [
        "run.yaml:4: seed: 042 is 34: YAML 1.1 reads a leading 0 as octal; write 42 or 34",
        "run.yaml:5: save_steps: 1:30 is 90: YAML 1.1 reads numbers with colons to the base 60; in quotes it is text",
    ]
    assert warned(tmp_path, "seed: 042\n", "seed=7") == []
    assert "override seed=010: 010 is 8" in warned(tmp_path, "", "seed=010")[0]
    assert warned(tmp_path, "seed: 0\nlearning_rate: 1e-4\nsave_steps: 1_0\nlora_rank: 0x10\n") == []


def test_values_of_a_components_file_too(tmp_path):
    (tmp_path / "c.yaml").write_text("random:\n  name: random\n  params: {seed: 017}\n", encoding="utf-8")
    file = tmp_path / "run.yaml"
    text = "train_type: dynamic_select\ncomponent_name: random\nupdate_step: 1\ncomponents_cfg_file: c.yaml\n"
    file.write_text(RUN + text, encoding="utf-8")
    found = load_config(file).warnings()
    assert [line for line in found if line.endswith("write 17 or 15") and "c.yaml:3: random.params.seed: 017" in line]


def test_yes_and_no_where_text_is_wanted(tmp_path):
    with pytest.raises(ConfigError, match=r"run_name: expected text, got False \(YAML reads yes, no, on and off"):
        warned(tmp_path, "run_name: no\n")
    assert load_config({"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "bf16": True}).bf16


def test_a_huge_configuration_is_refused_at_once(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(RUN + "x: [" + "1, " * (4 * 1024 * 1024) + "1]\n", encoding="utf-8")
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"run.yaml has 12,\d{3},\d{3} bytes, a configuration has at most 524,288"):
        load_config(file)
    assert time.perf_counter() - start < 1
    file.write_text(RUN + "#" * (LARGEST - len(RUN)), encoding="utf-8")
    assert load_config(file).seed == 42


def test_aliases_do_not_explode():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20))
    found = parse_yaml(bomb, lambda line: f"line {line}")
    assert "it expands to more than 100000 values" in found.problems[0]


def test_pipes_and_devices_are_no_files(tmp_path):
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"rows.jsonl is a pipe, expected a file"):
        load_samples(pipe)
    with pytest.raises(ConfigError, match=r"rows.jsonl is a pipe, expected a file"):
        read_text(pipe)
    with pytest.raises(ConfigError, match=r"/dev/zero is a device, expected a file"):
        read_text(Path("/dev/zero"))
    with pytest.raises(ConfigError, match="is a folder, expected a file"):
        read_text(tmp_path)


ENDLESS = "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(deadline.cpu_limit.__wrapped__, "__defaults__", (0.2,))


@pytest.mark.usefixtures("short")
def test_a_template_that_does_not_end_is_stopped(tmp_path):
    (tmp_path / "endless.jinja").write_text(ENDLESS, encoding="utf-8")
    with pytest.raises(DataError, match=r"it had not ended after 0.2 seconds of computing"):
        ChatTemplate.load(str(tmp_path / "endless.jinja"), tiny_tokenizer())
    with pytest.raises(DataError, match=r"row 0\): it had not ended after 0.2 seconds"):
        TextTemplate(ENDLESS).render(tiny_samples(1)[0])
    request = RewardRequest("7", ({"role": "user", "content": "?"},), "!", None)
    with pytest.raises(RewardError, match=r"cannot be rendered: TimeoutError: it had not ended after 0\.2 seconds"):
        JudgePrompt(JudgeConfig(judge_prompt="{{ answer }}" + ENDLESS)).render(request)


def test_a_bound_leaves_nothing_behind():
    import signal

    before = signal.getsignal(signal.SIGVTALRM)
    with deadline.cpu_limit(5):
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    assert signal.getsignal(signal.SIGVTALRM) == before
