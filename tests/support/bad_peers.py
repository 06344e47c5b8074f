"""Candidates for benchmarks.gpu that lie, crash and hang, each after its first call."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.gpu.candidates import Candidate, Named, Work

NAMES = ("honest", "lies", "misses", "raises", "crashes", "exits", "hangs")


def candidates(work: Work) -> dict[str, Candidate]:
    """One of each kind; what is right is known here, so that they can be nearly right."""
    right = {name: tensor for name, tensor in work.expected.items() if name != "sums"}

    def lies() -> Named:
        """Right in all tensors but the last, of which a fifth of the values are zero."""
        name, tensor = list(right.items())[-1]
        wrong = tensor.flatten().clone()
        wrong[::5] = 0
        return {**right, name: wrong.view(tensor.shape)}

    def misses() -> Named:
        return dict(list(right.items())[:-1])

    def raises() -> Named:
        raise RuntimeError("an illegal instruction\nand more")

    def crashes() -> Named:
        os.kill(os.getpid(), signal.SIGSEGV)
        return right

    def exits() -> Named:
        os._exit(3)

    def hangs() -> Named:
        time.sleep(3600)
        return right

    calls = (lambda: right, lies, misses, raises, crashes, exits, hangs)
    gives = tuple(right)
    return {
        name: Candidate(lambda call=call: call, gives)
        for name, call in zip(NAMES, calls, strict=True)
    }
