"""A stand-in for vLLM's server: its options, health of its kind, and the same score for every answer.

``FAKE_VLLM_MODE``: ``dies`` prints and exits; ``silent`` never listens; ``stubborn`` ignores SIGTERM. What it was
started with, and the pid of a process that it started in turn, go to the file ``FAKE_VLLM_RECORD``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("model", "served-model-name", "host", "load-format", "dtype", "generation-config", "uvicorn-log-level"):
    parser.add_argument(f"--{option}")
for option in ("port", "seed", "tensor-parallel-size", "max-model-len", "kv-cache-memory-bytes"):
    parser.add_argument(f"--{option}", type=int)
parser.add_argument("--gpu-memory-utilization", type=float)
parser.add_argument("--chat-template")
parser.add_argument("--enforce-eager", action="store_true")
parser.add_argument("--enable-chunked-prefill", action=argparse.BooleanOptionalAction)
parser.add_argument("--trust-remote-code", action="store_true")
options = parser.parse_args()
mode = os.environ.get("FAKE_VLLM_MODE", "")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": options.served_model_name, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert body["model"] == options.served_model_name
        message = {"role": "assistant", "content": json.dumps({"score": 0.75})}
        self.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def answer(self, value: object, status: int = 200) -> None:
        key = os.environ.get("VLLM_API_KEY")
        if key and self.headers["authorization"] != f"Bearer {key}":
            value, status = {"error": "Unauthorized"}, 401
        sent = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record = {
        "options": vars(options),
        "argv": sys.argv,
        "pid": os.getpid(),
        "worker": worker.pid,
        "environment": {name: os.environ.get(name) for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS")},
    }
    Path(os.environ["FAKE_VLLM_RECORD"]).write_text(json.dumps(record), encoding="utf-8")
    print("the engine is warming up", flush=True)
    if mode == "dies":
        print("ValueError: no memory for the cache", flush=True)
        sys.exit(3)
    if mode == "silent":
        time.sleep(600)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever(poll_interval=0.01)


if __name__ == "__main__":
    main()
