"""vLLM's offline engine: importing, starting and stopping it, for the judge and for the answers of the policy.

Written for vLLM 0.32 (``LLM``). Its usage reports to the vLLM project are off unless the environment turns them on.
"""

from __future__ import annotations

import gc
import logging
import os
from typing import Any

from dataflex.errors import DataflexError

logger = logging.getLogger(__name__)

CPU_KV_CACHE_GIB = 2.0
"""Room for keys and values where there is no GPU: vLLM would take its share of all memory, training's included."""

_CPU_PAGE = "https://docs.vllm.ai/en/stable/getting_started/installation/cpu/"
_GIB = 2**30
_STOP_SECONDS = 10.0


def import_vllm(needed_by: str, error: type[DataflexError]) -> Any:
    """The package ``vllm``.

    Args:
        needed_by: For the message: what cannot work without it.
        error: The exception to raise.

    Raises:
        DataflexError: It cannot be imported; ``error`` is its class.
    """
    for name, value in quiet_environment().items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as reason:
        raise error(
            f"{needed_by} needs vLLM, which cannot be imported: {reason}",
            hint=f'pip install "dataflex-sdk[vllm]"; without a GPU, vLLM\'s CPU build: {_CPU_PAGE}',
        ) from reason
    return vllm


def quiet_environment() -> dict[str, str]:
    """Environment variables that turn vLLM's usage reports off."""
    return {"VLLM_NO_USAGE_STATS": "1"}


def start_engine(
    model: str,
    *,
    needed_by: str,
    error: type[DataflexError],
    kv_cache_gib: float | None,
    enforce_eager: bool | None,
    **options: Any,
) -> Any:
    """Start an engine (``vllm.LLM``).

    Args:
        model: Folder or hub id.
        needed_by: For messages.
        error: The exception to raise.
        kv_cache_gib: Room for keys and values; None: what vLLM finds on a GPU, :data:`CPU_KV_CACHE_GIB` without one.
        enforce_eager: Whether to do without compilation; None: only without a GPU, where it takes minutes.
        **options: Further arguments of ``vllm.LLM``.

    Raises:
        DataflexError: vLLM is missing or the engine does not start; ``error`` is its class.
    """
    vllm = import_vllm(needed_by, error)
    has_gpu = _has_gpu()
    options.setdefault("load_format", "safetensors")  # not pickles, which vLLM would take in their absence
    options["enforce_eager"] = not has_gpu if enforce_eager is None else enforce_eager
    if kv_cache_gib is None and not has_gpu and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        kv_cache_gib = CPU_KV_CACHE_GIB
        logger.info("no GPU: %s takes %g GiB of memory for keys and values", needed_by, kv_cache_gib)
    if not has_gpu:
        # A prompt of a seeded request that is read in two pieces stops vLLM's CPU engine: it rewinds the request's
        # generator, which torch's generators on the CPU cannot do.
        options["enable_chunked_prefill"] = False
    if kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(kv_cache_gib * _GIB)
    try:
        return vllm.LLM(model=model, **options)
    except Exception as reason:
        raise error(
            f"the vLLM engine for {model!r} did not start: {type(reason).__name__}: {reason}",
            hint="out of memory: lower gpu_memory_utilization or max_model_len (without a GPU: the KV cache); the "
            "engine's own log is above",
        ) from reason


def stop_engine(engine: Any) -> None:
    """Stop an engine's processes and free its memory."""
    core = engine.llm_engine.engine_core
    core.shutdown()
    _close_context(core)
    gc.collect()


def _close_context(core: Any) -> None:
    """Close what the client of an engine in another process leaves open.

    vLLM closes its sockets, the last of them in a thread, but not their ZeroMQ context: whenever that is collected, at
    the end of the process at the latest, it is reported as a leak. An engine in this process has no context.
    """
    context = getattr(getattr(core, "resources", None), "ctx", None)
    if context is None:
        return
    reader = getattr(core, "output_queue_thread", None)
    if reader is not None:
        reader.join(_STOP_SECONDS)
        if reader.is_alive():  # a socket must not be closed under the thread that reads it
            logger.warning("vLLM's thread %s did not end after %g s; its sockets stay open", reader.name, _STOP_SECONDS)
            return
    context.destroy(linger=0)


def _has_gpu() -> bool:
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()
