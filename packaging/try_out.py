"""The wheel, as users meet it: python packaging/try_out.py WHEEL --pythons 3.10 3.14

For each Python and each torch it makes a fresh environment of torch and what that requires. There,
with neither a compiler on PATH nor a network, it installs the wheel, and runs
``python -m vgg_fast.info`` and packaging/use.py: forward, backward, a fused model, training steps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
USE = HERE / "use.py"
OLDEST = "2.11"


@dataclass(frozen=True)
class Environment:
    """A fresh environment of one Python and one torch."""

    folder: Path
    interpreter: str
    torch: str

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def create(self) -> None:
        """Everything but the wheel; needs the package index."""
        subprocess.run([self.interpreter, "-m", "venv", self.folder], check=True)
        wanted = "torch" if self.torch == "newest" else f"torch=={self.torch}.*"
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-compile", wanted], check=True)

    def alone(self, *command: str | Path) -> str:
        """What ``command`` prints, without a network, a compiler or this process's settings."""
        isolated = [*without_network(), *map(str, command)]
        kept = {"PATH": str(self.folder / "bin"), "HOME": str(self.folder), "LANG": "C.UTF-8"}
        ran = subprocess.run(
            isolated, env=kept, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if ran.returncode != 0:
            sys.exit(
                f"{' '.join(isolated)}: exit status {ran.returncode}\n{ran.stdout}{ran.stderr}"
            )
        return ran.stdout

    def try_out(self, wheel: Path) -> str:
        """The last line of packaging/use.py. SystemExit if anything fails."""
        self.alone(self.python, "-m", "pip", "install", "--no-index", wheel)
        facts = self.alone(self.python, "-m", "vgg_fast.info")
        if "instruction sets" not in facts:
            sys.exit(f"python -m vgg_fast.info doesn't name the instruction sets:\n{facts}")
        return self.alone(self.python, USE).splitlines()[-1]


def without_network() -> list[str]:
    """The command that runs another one without a network, or nothing where there is none."""
    unshare = shutil.which("unshare")
    command = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--map-root-user", "--net"]
    if unshare and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return []


def interpreter_of(python: str) -> str:
    """The path of ``python``, a version or a path itself. SystemExit if it isn't there."""
    found = shutil.which(python if os.sep in python else f"python{python}")
    if found is None:
        sys.exit(f"packaging/try_out.py: there is no python{python} on PATH; a path may be given")
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python packaging/try_out.py")
    parser.add_argument("wheel", type=Path)
    running = "{}.{}".format(*sys.version_info[:2])
    parser.add_argument(
        "--pythons", nargs="+", default=[running], help="versions on PATH, or paths of interpreters"
    )
    parser.add_argument(
        "--torches", nargs="+", default=[OLDEST, "newest"], help="versions, or newest"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    wheel = options.wheel.resolve(strict=True)
    interpreters = [interpreter_of(python) for python in options.pythons]
    if not without_network():
        print("unshare can't take the network away here: pip's --no-index alone does", flush=True)
    for interpreter in interpreters:
        for torch in options.torches:
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="vgg_fast-try-") as folder:
                environment = Environment(Path(folder), interpreter, torch)
                environment.create()
                told = environment.try_out(wheel)
            print(f"{told} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
