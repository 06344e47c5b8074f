"""OpenVINO on the CPU, in fp32, and in bf16 where the processor has it."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from benchmarks.peers.base import Call, Unavailable, installed_version, require_forward
from benchmarks.shapes import Precision
from benchmarks.work import Work


class OpenVino:
    name = "openvino"
    precision: Precision = "fp32"

    def version(self) -> str:
        return installed_version("openvino")

    def prepare(self, work: Work) -> Call:
        require_forward(self, work)
        import openvino

        core = openvino.Core()
        if self.precision == "bf16":
            capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in capabilities:
                raise Unavailable("finds no bf16 arithmetic in this processor")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = openvino.convert_model(
                work.model(), example_input=work.input()[:1], input=[list(work.shape)]
            )
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            },
        )
        request = compiled.create_infer_request()
        images = [work.input().numpy()]

        def run(_: Any) -> Any:
            return request.infer(images, share_inputs=True, share_outputs=True)[0]

        # The output lies in the request's memory, which the next run overwrites.
        return Call(run=run, results=lambda output: [torch.from_numpy(output.copy())])


class OpenVinoBf16(OpenVino):
    name = "openvino bf16"
    precision: Precision = "bf16"
