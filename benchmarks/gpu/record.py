"""The record of a run: what was measured on which GPU with which versions, written as it comes."""

from __future__ import annotations

import datetime
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write
from vgg_fast import _extension

__all__ = ["device_name", "environment", "file_name", "merge", "read", "write"]


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader must know in addition to the numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "device_type": device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _triton_version(),
        "python": platform.python_version(),
        "cuda_library": _extension.cuda_library_problem() or "loaded",
        "dtype": str(torch.bfloat16),
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def device_name(facts: dict[str, Any]) -> str:
    """The GPU's, as a part of a file's name."""
    return re.sub(r"\W+", "-", facts["device"]).strip("-").lower()


def file_name(facts: dict[str, Any]) -> str:
    part = "-second" if facts.get("plan") == "second" else ""
    part += "".join(f"-{step.replace(' ', '-')}" for step in facts.get("only", ()))
    return f"{facts['date'][:10]}-gpu-{device_name(facts)}{part}.json"


def read(file: Path) -> dict[str, Any]:
    """The record.

    Raises:
        OSError, ValueError: it can't be read, or isn't JSON.
    """
    return json.loads(file.read_text(encoding="utf-8"))


def merge(into: dict[str, Any], part: dict[str, Any]) -> None:
    """Add what was found: dictionaries entry by entry, lists appended, all else replaced."""
    for name, value in part.items():
        if isinstance(value, dict):
            merge(into.setdefault(name, {}), value)
        elif isinstance(value, list):
            into[name] = into.get(name, []) + value
        else:
            into[name] = value
