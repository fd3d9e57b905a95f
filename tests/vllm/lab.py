"""Where the real vLLM lies, and how one of its workers is started and stopped.

A worker is several processes; they are started as a process group of their own, and only that group is ever signalled:
killing the server process alone would leave the engine's processes as orphans that hold memory and ports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

MODEL = "tiny"
BLOCK_TOKENS = 32
CACHE_BLOCKS = 2000
MAX_MODEL_LEN = 16_384
MAX_NUM_SEQS = 8
MAX_NUM_BATCHED_TOKENS = 2048
FLAGS = Path(__file__).parents[2] / "deploy" / "workers" / "vllm.yaml"
"""What users are told to start workers with."""
START_TIMEOUT_S = 240.0


def lab_directory() -> Path:
    """``$WARMROUTE_VLLM_LAB``, or a directory in the user's cache."""
    return Path(os.environ.get("WARMROUTE_VLLM_LAB") or "~/.cache/warmroute-vllm").expanduser()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def worker_environment(lab: Path) -> dict[str, str]:
    """Offline, in the lab's own caches, one OpenMP thread a worker so that two share two cores fairly."""
    return os.environ | {
        "PATH": f"{lab / 'venv/bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "HF_HOME": str(lab / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(lab / "cache"),
        "VLLM_CONFIG_ROOT": str(lab / "config"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }


def worker_command(lab: Path, port: int) -> list[str]:
    # A block of 16 tokens is refused on CPU, and bfloat16 is slower there than float32.
    return [
        *(str(lab / "venv/bin/vllm"), "serve", str(lab / "models" / MODEL), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--load-format", "dummy", "--dtype", "float32"),
        *("--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)),
        *("--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS), "--block-size", str(BLOCK_TOKENS)),
        *("--num-gpu-blocks-override", str(CACHE_BLOCKS), "--config", str(FLAGS), "--shutdown-timeout", "20"),
    ]


@dataclass(slots=True)
class VllmWorker:
    """One real worker on a port of its own; it can be started again after it was killed."""

    lab: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.lab / "logs" / f"{self.port}.log"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Begin to start; ``wait_until_up`` says when it serves (45 to 100 s later)."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                worker_command(self.lab, self.port),
                env=worker_environment(self.lab),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        """Raises RuntimeError with the end of the log when it does not come up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.is_running:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2):
                return
            time.sleep(0.2)
        tail = self.log.read_text(errors="replace")[-3000:]
        self.kill()
        raise RuntimeError(f"vLLM did not come up on port {self.port}:\n{tail}")

    def kill(self) -> None:
        """SIGKILL to the whole group, as when a node is lost."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever of the group is left."""
        self._signal(signal.SIGTERM)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
