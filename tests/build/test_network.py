"""Neither importing the package nor describing its build asks anything of the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARD = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"asks the network: {event} {arguments}")
sys.addaudithook(refuse)
"""
IMPORTS = "import vgg_fast, vgg_fast.features, vgg_fast.info, vgg_fast.fusing.dynamo"
BUILD = "import setup; print([extension.name for extension in setup.extensions()])"


def run(code: str) -> subprocess.CompletedProcess:
    """Run ``code`` where the network is refused."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return subprocess.run(
        [sys.executable, "-c", GUARD + code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "VGG_FAST_CUDA": "0"},
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("code", [IMPORTS, BUILD], ids=["import", "build"])
def test_nothing_asks_the_network(code: str) -> None:
    found = run(code)
    assert found.returncode == 0, found.stderr


def test_the_guard_notices() -> None:
    found = run("import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)")
    assert found.returncode == 1
    assert "asks the network: socket." in found.stderr
