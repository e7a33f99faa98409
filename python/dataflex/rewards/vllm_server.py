"""A judge model in a vLLM server of its own process, asked through its chat completions API.

The judge is that of ``local_vllm``, with the same parameters; the difference is where it runs. A server needs not share
the Python environment of the training (``server_python``), nor its process. It listens on 127.0.0.1 only, behind a
random key that no file and no command line holds. It starts with the first answer that no cache knows, writes a log,
and ends with this process, however that ends; ``vllm_release`` stops it after each round.

``server_url`` names a server on this machine that runs already; it is asked and never stopped.

Written for vLLM 0.32 (``vllm.entrypoints.openai.api_server``).
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import torch
from pydantic import Field, field_validator

from dataflex.errors import ModelError, RewardError
from dataflex.models.identity import file_digest, model_identity
from dataflex.models.model import load_tokenizer
from dataflex.rewards.api import is_loopback
from dataflex.rewards.chat import ChatConfig, ChatReward, cache_folder
from dataflex.rewards.judge import SCORE_PATTERN
from dataflex.rewards.server_process import ServerProcess, free_port, is_free
from dataflex.rewards.vllm import PLAIN_CHAT_TEMPLATE, VllmJudgeConfig, control_tokens
from dataflex.types import RewardRequest
from dataflex.utils.vllm_engine import CPU_KV_CACHE_GIB, quiet_environment

if TYPE_CHECKING:
    from dataflex.rewards.wire import Endpoint

logger = logging.getLogger(__name__)

_MODULE = "vllm.entrypoints.openai.api_server"
_PROBE_SECONDS = 5.0


class VllmServerConfig(VllmJudgeConfig, ChatConfig):
    """Parameters of a judge in a vLLM server."""

    limits: ClassVar[frozenset[str]] = ChatConfig.limits | {
        *("server_url", "server_port", "server_log", "server_start_timeout", "vllm_release")
    }

    max_concurrency: int = Field(32, ge=1, description="requests under way at once; the server batches them")
    timeout: float = Field(600.0, gt=0, description="seconds for one request")
    server_url: str | None = Field(
        None, description="a server on this machine that runs already (http://127.0.0.1:8000/v1); null: start one"
    )
    server_python: str = Field(
        sys.executable, min_length=1, description="the Python that has vLLM; another environment's may be named"
    )
    server_port: int | None = Field(None, ge=1, le=65535, description="port on 127.0.0.1; null: a free one")
    server_log: Path | None = Field(None, description="file of the server's output; null: in the user's cache folder")
    server_start_timeout: float = Field(900.0, gt=0, description="seconds until the server must answer")
    server_options: list[str] = Field(default_factory=list, description="further options of the server")

    @field_validator("server_url")
    @classmethod
    def _is_on_this_machine(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme != "http" or not is_loopback(parts.hostname or "") or parts.username or parts.password:
                raise ValueError("expected http://127.0.0.1:PORT/v1; for a server elsewhere use the backend api")
        return url


class VllmServerReward(ChatReward[VllmServerConfig]):
    """Scores answers in [0, 1] with a judge model in a vLLM server.

    Example:
        >>> judge = VllmServerReward(hf_model_name_or_path="meta-llama/Llama-3.1-8B-Instruct")
    """

    name: ClassVar[str] = "vllm_server"
    Config = VllmServerConfig

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._server: ServerProcess | None = None
        self._endpoint: Endpoint | None = None
        self._identity: list[Any] | None = None

    def expect_able(self) -> None:
        """See that the packages and the judge's tokenizer are there, and a given server or port; nothing is started.

        Raises:
            RewardError: Something is missing.
        """
        super().expect_able()
        _ = self._tokenizer
        port = self.config.server_port
        if self.config.server_url is not None:
            self._expect_judge(_endpoint_at(self.config.server_url, None))
        elif port is not None and self._server is None and not is_free(port):
            raise RewardError(f"port {port} of 127.0.0.1 is taken", hint="server_port: null takes a free one")

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`RewardBackend.score`.

        Raises:
            RewardError: The server does not start or stops; or an answer could not be scored and ``on_error`` is
                ``raise``. Scores that arrived are cached before.
        """
        try:
            return super().score(requests)
        finally:
            if self.config.vllm_release:
                self.close()

    def close(self) -> None:
        """Stop the server if this backend started it. The next round starts another."""
        self._endpoint = self._identity = None
        if self._server is not None:
            server, self._server = self._server, None
            server.stop()

    def identity(self) -> Any:
        """The model's content, its precision and the server's further options; not the port.

        Looked up once a start of the server, which keeps the weights that it loaded. A hub model that is not cached yet
        has no revision: the server fetches it first.

        Raises:
            RewardError: See :meth:`endpoint`.
        """
        if self._identity is None:
            name = self.config.hf_model_name_or_path
            facts = model_identity(name)
            if facts.get("revision", "") is None:
                self.endpoint()
                facts = model_identity(name)
            options = [[option, _content(option)] for option in self.config.server_options]
            self._identity = [self.name, facts, self.config.vllm_dtype, options]
        return self._identity

    def body(self) -> dict[str, Any]:
        """Model and sampling parameters."""
        config = self.config
        constraint = {"structured_outputs": {"regex": SCORE_PATTERN}} if config.vllm_constrain_reply else {}
        return {
            "model": config.hf_model_name_or_path,
            "temperature": config.vllm_temperature,
            "top_p": config.vllm_top_p,
            "max_tokens": config.vllm_max_tokens,
            "seed": config.vllm_seed,
            "extra_body": {"top_k": config.vllm_top_k, **constraint},
        }

    def control_tokens(self) -> frozenset[str]:
        """Those of the judge's tokenizer."""
        return control_tokens(self._tokenizer)

    def endpoint(self) -> Endpoint:
        """The server, started if it is not running.

        Raises:
            RewardError: It does not start, or a given one does not serve the judge.
        """
        if self._server is not None and not self._server.running:
            logger.warning("the vLLM server ended between two rounds and is started again; see %s", self._server.log)
            self.close()
        if self._endpoint is None:
            if self.config.server_url is not None:
                self._endpoint = _endpoint_at(self.config.server_url, None)
                self._expect_judge(self._endpoint)
            else:
                self._endpoint = self._started()
        return self._endpoint

    def _started(self) -> Endpoint:
        config = self.config
        port = config.server_port or free_port()
        # The key keeps other users of this machine out; it also tells our server from one that took the port first.
        endpoint = _endpoint_at(f"http://127.0.0.1:{port}/v1", secrets.token_urlsafe(32))
        environment = {"VLLM_API_KEY": endpoint.key or "", **self._defaults()}
        log = config.server_log or cache_folder() / f"vllm-server-{port}.log"
        logger.info("starting a vLLM server for %s on port %d; its log is %s", config.hf_model_name_or_path, port, log)
        self._server = ServerProcess(config.server_python, ["-m", _MODULE, *self._options(port)], environment, log)
        try:
            self._server.wait_until(lambda: bool(_served(endpoint)), config.server_start_timeout)
            self._expect_judge(endpoint)
        except BaseException:
            self.close()
            raise
        return endpoint

    def _defaults(self) -> dict[str, str]:
        """Environment variables of the server that the user has not set."""
        values = quiet_environment()
        if self.config.vllm_kv_cache_gib is None:
            values["VLLM_CPU_KVCACHE_SPACE"] = f"{CPU_KV_CACHE_GIB:.0f}"  # it is read where there is no GPU only
        return {name: value for name, value in values.items() if name not in os.environ}

    def _options(self, port: int) -> list[str]:
        config = self.config
        values: Mapping[str, Any] = {
            "model": config.hf_model_name_or_path,
            "served-model-name": config.hf_model_name_or_path,
            "host": "127.0.0.1",
            "port": port,
            "load-format": "safetensors",  # not pickles, which vLLM would take in their absence
            "dtype": config.vllm_dtype,
            "seed": config.vllm_seed,
            "tensor-parallel-size": config.vllm_tensor_parallel_size,
            "gpu-memory-utilization": config.vllm_gpu_memory_utilization,
            "max-model-len": config.vllm_max_model_len,
            "kv-cache-memory-bytes": None
            if config.vllm_kv_cache_gib is None
            else int(config.vllm_kv_cache_gib * 2**30),
            "chat-template": None if self._tokenizer.chat_template else PLAIN_CHAT_TEMPLATE,
            "generation-config": "vllm",
            "uvicorn-log-level": "warning",
        }
        given = [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]
        has_gpu = _has_gpu()
        flags = {
            "--enforce-eager": not has_gpu if config.vllm_enforce_eager is None else config.vllm_enforce_eager,
            "--no-enable-chunked-prefill": not has_gpu,  # dataflex.utils.vllm_engine.start_engine says why
            "--trust-remote-code": config.trust_remote_code,
        }
        return [*given, *(flag for flag, is_set in flags.items() if is_set), *config.server_options]

    def _expect_judge(self, endpoint: Endpoint) -> None:
        wanted, served = self.config.hf_model_name_or_path, _served(endpoint)
        if wanted not in served:
            raise RewardError(
                f"the server at {endpoint.base_url} "
                + (f"serves {', '.join(served)}, not {wanted!r}" if served else "does not answer as vLLM does"),
                hint="hf_model_name_or_path must be the served model's name (vllm serve --served-model-name)",
            )

    @cached_property
    def _tokenizer(self) -> Any:
        config = self.config
        try:
            return load_tokenizer(config.hf_model_name_or_path, trust_remote_code=config.trust_remote_code)
        except ModelError as error:
            raise RewardError(
                f"the judge's {error.message.removeprefix('cannot load the ')}", hint=error.hint
            ) from error


def _has_gpu() -> bool:
    """Whether the server will see a GPU, as far as this environment can tell."""
    return torch.cuda.is_available() or any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd"))


def _content(option: str) -> str | None:
    """SHA-256 of the file that an option or its value names (a chat template, ...); None: it names none."""
    file = Path(option.rpartition("=")[2])
    try:
        return file_digest(file) if file.is_file() else None
    except OSError:  # text that is no path at all, or one that cannot be read
        return None


def _endpoint_at(url: str, key: str | None) -> Endpoint:
    from dataflex.rewards.wire import Endpoint

    return Endpoint(url.rstrip("/"), {}, key, trust_env=False)


def _served(endpoint: Endpoint) -> list[str]:
    """Names of the models that the server offers to this key; none if it does not answer yet."""
    from dataflex.rewards.wire import model_names

    return model_names(endpoint, _PROBE_SECONDS)
