"""The training program in processes that a test may kill; torch is imported once for all of them.

A process that reads command lines, one JSON list a line, and forks a child for each: importing
torch takes seconds, and forking a hundredth of one. Nothing is computed before the fork, so that
no thread is lost in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """What a run came to. A negative code is the signal that killed it."""

    code: int
    out: str
    err: str


class Zygote:
    """Starts runs in ``folder``.

    Args:
        folder: the working directory of the runs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._count = 0
        # One thread: several programs share the cores, and sums have the same order.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        assert self._read() == "ready"

    def start(self, *arguments: str, **how: object) -> Run:
        """Start ``python -m vgg_fast.train`` with ``arguments``.

        Args:
            how: "stdout", a file to append to; "file_size", the most bytes of a file;
                "environment", variables over those that are set.
        """
        self._count += 1
        names = [str(self.folder / f"{what}-{self._count}") for what in ("out", "err")]
        out, err = how.pop("stdout", names[0]), names[1]
        self._write({"arguments": arguments, "stdout": out, "stderr": err, **how})
        return Run(self, int(self._read()), str(out), err)

    def run(self, *arguments: str, **how: object) -> Ended:
        """The same, to its end."""
        return self.start(*arguments, **how).wait()

    def wait(self, number: int) -> int:
        self._write({"wait": number})
        return int(self._read())

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _write(self, command: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Run(NamedTuple):
    """A run that was started; ``number`` is its process."""

    zygote: Zygote
    number: int
    out: str
    err: str

    def wait(self) -> Ended:
        code = self.zygote.wait(self.number)
        out = Path(self.out)
        text = out.read_text("utf-8") if out.is_file() else ""
        return Ended(code, text, Path(self.err).read_text("utf-8"))


# ------------------------------------------------------------------------------------------------


def _serve() -> None:
    from vgg_fast.train import program as train
    from vgg_fast.train import results

    # Pictures take a second each, and are drawn when all is saved.
    def finish(training, folder, progress):  # type: ignore
        training.samples()  # which all ranks predict together
        return results.result(training)

    train._finish = finish
    os.chdir(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            print(os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _be_a_run(train.main, **command)
        print(child, flush=True)


def _be_a_run(main, arguments, stdout, stderr, file_size=None, environment=None):  # type: ignore
    code = 70
    try:
        for descriptor, path in ((1, stdout), (2, stderr)):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(opened, descriptor)
            os.close(opened)
        if file_size is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        os.environ.update(environment or {})
        code = main(arguments)
        sys.stdout.flush()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
