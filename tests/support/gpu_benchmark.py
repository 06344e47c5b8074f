"""The program benchmarks.gpu, and options with which a CPU runs it in seconds."""

from __future__ import annotations

import importlib

main = importlib.import_module("benchmarks.gpu.__main__")
QUICK = ["--device=cpu", "--preset=fast", "--batch=1", "--rounds=2", "--milliseconds=1"]
