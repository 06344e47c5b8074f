"""The formats of an export: each is written, and loaded again as another program would load it.

Every program takes float32 (N, channels, image_size, image_size), normalised, and gives scores
float32 (N, classes). What normalises the images, and the names of the classes, lie in the file as
JSON under "input", where its format has a place for it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vgg_fast.train.config import TrainingError
from vgg_fast.trained.network import Trained, sequence

Format = Literal["torchscript", "aoti", "onnx", "safetensors"]
Program = Callable[[Tensor], Tensor]

INPUT = "input"
ONNX_LIMIT = 2**31 - 2**20  # bytes of a file in protobuf's encoding, less what isn't weights


class Work(NamedTuple):
    """How a format is written and loaded.

    Attributes:
        ending: of the file's name.
        packages: what it needs beyond the extra "train".
        write: takes the network, the number of images at once (None is any), and the path.
        read: takes the path and the network, and gives a function of images; None if the package
            that runs it is missing.
        may_be_fused: whether this package's operators can stand in the file.
        may_be_fixed: whether the number of images at once can be fixed.
    """

    ending: str
    packages: tuple[str, ...]
    write: Callable[[Trained, int | None, Path], object]
    read: Callable[[Path, Trained], Program | None]
    may_be_fused: bool
    may_be_fixed: bool


def require(packages: tuple[str, ...], what: str) -> None:
    """Refuse in one sentence if one of them can't be imported.

    Raises:
        TrainingError: it names all of them, with the command that installs them.
    """
    for name in packages:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise TrainingError(
                f"{(error.name or name).partition('.')[0]} isn't installed, and {what} needs it: "
                f"pip install {' '.join(packages)}"
            ) from error


# ------------------------------------------------------------------------------------ torchscript


def _write_torchscript(trained: Trained, batch: int | None, path: Path) -> None:
    with quiet():
        scripted = torch.jit.script(trained.model)
        torch.jit.save(scripted, str(path), _extra_files={INPUT: _input(trained)})


def _read_torchscript(path: Path, trained: Trained) -> Program:
    with quiet():
        program: Program = torch.jit.load(str(path))
    return program


# ------------------------------------------------------------------------------------------- aoti


def _write_aoti(trained: Trained, batch: int | None, path: Path) -> None:
    example = images_of(trained, batch or 2)  # 1 would be taken for a constant
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    with quiet():
        exported = torch.export.export(trained.model, (example,), dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {INPUT: _input(trained)}},
        )


def _read_aoti(path: Path, trained: Trained) -> Program:
    with quiet():
        program: Program = torch._inductor.aoti_load_package(str(path))
    return program


# ------------------------------------------------------------------------------------------- onnx


def _write_onnx(trained: Trained, batch: int | None, path: Path) -> None:
    size = sum(p.numel() * p.element_size() for p in trained.model.parameters())
    if size > ONNX_LIMIT:
        raise TrainingError(
            f"the network's weights take {size:,} bytes, and an ONNX file ends at 2 GiB: choose "
            "another format with --to"
        )
    with quiet():
        program = torch.onnx.export(
            trained.model,
            (images_of(trained, batch or 2),),
            dynamo=True,
            dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["scores"],
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props[INPUT] = _input(trained)
        program.save(str(path), external_data=False)


def _read_onnx(path: Path, trained: Trained) -> Program | None:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


# ------------------------------------------------------------------------------------ safetensors


def _write_safetensors(trained: Trained, batch: int | None, path: Path) -> None:
    from safetensors.torch import save_file

    weights = {
        f"{key}.{name}": value.contiguous()
        for key, layer in sequence(trained.model)
        for name, value in layer.state_dict().items()
    }
    save_file(weights, path, metadata={"format": "pt", INPUT: _input(trained)})


def _read_safetensors(path: Path, trained: Trained) -> Program:
    from safetensors.torch import load_file

    weights = load_file(path)
    model: nn.Sequential = copy.deepcopy(trained.model)
    for key, layer in sequence(model):
        names = layer.state_dict()
        layer.load_state_dict({name: weights.pop(f"{key}.{name}") for name in names})
    assert not weights, "the file holds what no layer has"
    return model


# ------------------------------------------------------------------------------------------------

FORMATS: dict[Format, Work] = {
    "torchscript": Work("torchscript", (), _write_torchscript, _read_torchscript, True, False),
    "aoti": Work("pt2", (), _write_aoti, _read_aoti, True, True),
    "onnx": Work("onnx", ("onnx", "onnxscript"), _write_onnx, _read_onnx, False, True),
    "safetensors": Work(
        "safetensors", ("safetensors",), _write_safetensors, _read_safetensors, False, False
    ),
}


def images_of(trained: Trained, count: int) -> Tensor:
    """The same invented images every time, as the network takes them."""
    taken = trained.input
    generator = torch.Generator().manual_seed(0)
    shape = (count, taken.channels, taken.image_size, taken.image_size)
    return torch.randn(shape, generator=generator).to(trained.device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings and progress, which are not for whoever exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _input(trained: Trained) -> str:
    return json.dumps(trained.input.as_plain_values())
