from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from dataflex.errors import DataError, ModelError
from dataflex.testing import tiny_tokenizer
from dataflex.utils.foreign import FILES, JSON, arrow_errors, explain, foreign, model_errors, safetensors_errors


def caught(run, expected, error=DataError):
    with pytest.raises(error) as found, foreign(error, "cannot do it", expected):
        run()
    assert found.value.__cause__ is not None
    assert "\n" not in found.value.message
    return found.value.message, found.value.hint


def fill_disk():
    with Path("/dev/full").open("w", buffering=1) as file:
        file.write("a line\n")


def test_errors_of_the_system_say_what_and_the_way_on(tmp_path):
    assert caught(fill_disk, FILES) == (
        "cannot do it: the disk is full",
        "free some space, or name a folder on another disk",
    )
    assert caught((tmp_path).read_text, FILES)[0] == f"cannot do it: it is a folder, not a file: {tmp_path}"
    (tmp_path / "file").touch()
    message, hint = caught((tmp_path / "file" / "x").mkdir, FILES)
    assert message.startswith("cannot do it: a file stands where a folder is needed: ")
    assert hint == "remove the file, or name another folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    (tmp_path / "secret").touch(mode=0)
    message, hint = caught((tmp_path / "secret").read_text, FILES)
    assert message == f"cannot do it: permission denied: {tmp_path / 'secret'}"
    assert hint == "give this user access, or name another place"


def test_the_same_disk_error_through_other_packages():
    # The texts of tokenizers, safetensors and pyarrow; writing to /dev/full with them would replace the device.
    texts = (
        "No space left on device (os error 28)",
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device",
    )
    for text in texts:
        assert explain(Exception(text))[0] == "the disk is full"
    tensors = {"a": np.zeros(3)}
    message, _ = caught(lambda: save_file(tensors, "/nowhere/file"), safetensors_errors())
    assert message == "cannot do it: no such file or folder"
    message, _ = caught(lambda: tiny_tokenizer().backend_tokenizer.save("/nowhere/file"), model_errors(), ModelError)
    assert message == "cannot do it: no such file or folder"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b'{"a": 1}}', "not valid JSON: Extra data (line 1, column 9)"),
        (b"ok \xff", "not UTF-8 text: byte 0xff at position 3"),
        (b"[" * 100_000, "values in it are nested too deeply"),
        (b"1" * 10_000, "Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, text, cause):
    (tmp_path / "file").write_bytes(text)
    message, _ = caught(lambda: json.loads((tmp_path / "file").read_text(encoding="utf-8")), JSON)
    assert message.startswith(f"cannot do it: {cause}")


@pytest.mark.parametrize("length", [0, 4, 60, 500])
def test_torn_tensors(tmp_path, length):
    save_file({"a": np.zeros(100)}, tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:length])
    message, hint = caught(lambda: load_file(tmp_path / "file"), safetensors_errors())
    assert message.startswith("cannot do it: the file is damaged or cut off (")
    assert hint == "copy or download the file again"


def test_torn_parquet(tmp_path):
    (tmp_path / "file").write_bytes(b"PAR1")
    message, _ = caught(lambda: pq.read_table(tmp_path / "file"), arrow_errors())
    assert "Parquet" in message


def test_forty_lines_of_torch_become_one():
    big, small = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)), nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 5))
    message, _ = caught(lambda: small.load_state_dict(big.state_dict()), model_errors(), ModelError)
    assert message == "cannot do it: 0.weight has shape [2, 3] in the file, [1, 3] in the model (and 2 more)"
    message, _ = caught(lambda: small.load_state_dict({}), model_errors(), ModelError)
    assert message == (
        "cannot do it: Error(s) in loading state_dict for Sequential: "
        'Missing key(s) in state_dict: "0.weight", "0.bias", "1.weight", "1.bias".'
    )


def test_texts_that_say_little_get_their_type():
    assert explain(KeyError("hidden_act")) == ("'hidden_act' is missing or unknown", None)
    assert explain(ZeroDivisionError("integer modulo by zero"))[0] == "ZeroDivisionError: integer modulo by zero"
    assert explain(AssertionError())[0] == "AssertionError without a message"


def test_what_is_not_expected_passes_through():
    for error in (ValueError("a mistake of our own"), KeyboardInterrupt(), ModelError("said already")):
        with pytest.raises(type(error)) as found, foreign(DataError, "cannot do it", FILES):
            raise error
        assert found.value is error
    with pytest.raises(StopAsyncIteration), foreign(DataError, "cannot do it", (Exception,)):
        raise StopAsyncIteration  # Exception stands for that very class


def test_hints_are_joined_and_the_text_may_be_a_function():
    with pytest.raises(DataError) as found, foreign(DataError, lambda: "late", FILES, hint="the run can be resumed"):
        fill_disk()
    assert found.value.message == "late: the disk is full"
    assert found.value.hint == "free some space, or name a folder on another disk; the run can be resumed"


def test_memory_is_said():
    assert explain(MemoryError())[0] == "not enough memory"
    assert "out of memory" in explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))[0]
