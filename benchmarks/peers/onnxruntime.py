"""ONNX Runtime on the CPU, all graph optimisations on (its default)."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

from benchmarks.peers.base import Call, installed_version, require_forward
from benchmarks.shapes import Precision
from benchmarks.work import Work


class OnnxRuntime:
    name = "onnxruntime"
    precision: Precision = "fp32"

    def version(self) -> str:
        for package in ("onnx", "onnxscript"):
            installed_version(package)
        return installed_version("onnxruntime")

    def prepare(self, work: Work) -> Call:
        require_forward(self, work)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Its threads would go on spinning into the next peer's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            _exported(work), options, providers=["CPUExecutionProvider"]
        )
        inputs = {session.get_inputs()[0].name: work.input().numpy()}

        def run(_: Any) -> Any:
            return session.run(None, inputs)[0]

        return Call(run=run, results=lambda output: [torch.from_numpy(output)])


def _exported(work: Work) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(work.model(), (work.input(),), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()
