from typing import Any

def build_facts() -> dict[str, str]: ...
def cpu_instruction_sets() -> list[str]: ...
def cpu_instruction_set() -> str: ...
def cpu_algorithms() -> list[str]: ...
def plan_convolution(
    images: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    storage: int,
    precision: int,
    threads: int,
    algorithm: int,
    workspace: int,
    for_dgrad: bool,
) -> dict[str, Any]: ...
def plan_weight_gradient(
    images: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    storage: int,
    precision: int,
    threads: int,
    algorithm: int,
    workspace: int,
    for_dgrad: bool,
) -> dict[str, Any]: ...
