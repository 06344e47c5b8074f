"""Every option of the training program that the pages about it name exists."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tests.support.pages import text
from vgg_fast.train.options import Config

# Options of torchrun, tensorboard, sbatch, and the programs for a trained network.
OF_OTHERS = {
    *("help", "standalone", "nproc-per-node", "nnodes", "rdzv-backend", "rdzv-endpoint", "rdzv-id"),
    *("logdir", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"),
    *("to", "invert", "json", "port"),
}


@pytest.mark.parametrize("page", ["docs/training.md", "docs/tutorial/train.md"])
def test_every_option_that_is_named_exists(page) -> None:
    named = set(re.findall(r"--([a-z][a-z-]+)", text(page))) - OF_OTHERS
    taken = {field.name.replace("_", "-") for field in dataclasses.fields(Config)}
    switched_off = {f"no-{name}" for name in taken}
    assert named and named <= taken | switched_off
