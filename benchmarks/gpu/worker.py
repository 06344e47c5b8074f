"""A process that measures for benchmarks.gpu: ``python -m benchmarks.gpu.worker DEVICE``.

It reads jobs (jobs.py) from its standard input, and answers each with lines of JSON, the last of
which says ``done``. It may crash or hang at any moment: pool.py starts another. What a program
prints by accident goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any


def serve(jobs: IO[str], lines: IO[str], device: str) -> None:
    """Do the jobs one after the other until there are no more."""
    import torch

    from benchmarks.gpu.context import Context, in_one_line
    from benchmarks.gpu.jobs import JOBS

    def say(**line: Any) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    say(ready=True)
    context = Context(torch.device(device))
    for text in jobs:
        job = json.loads(text)
        problem = {}
        try:
            context.adopt(job["choices"])
            for line in JOBS[job["job"]](context, **job["arguments"]):
                say(**line)
                if "problem" in line:
                    context.leave_if_unusable(say)
        except Exception as error:
            problem = {"problem": in_one_line(error)}
        context.leave_if_unusable(say)
        say(done=True, **problem)


if __name__ == "__main__":
    os.environ.setdefault("VGG_FAST_AUTOTUNE", "0")  # the job "tune" tunes, and no other
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers, sys.argv[1])
