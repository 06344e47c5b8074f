"""torch.compile, torch.export and AOTInductor give the fused seed network's own numbers."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

from tests.support.numerics import relative_error
from tests.support.seed import assert_same_numbers, gradients_of, images, seed_network
from vgg_fast import layers

FUSED_CALLS = ("vgg_fast.conv3x3_relu.default", "vgg_fast.conv3x3_relu_pool.default")

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler on CPU",
)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------ torch.compile


@needs_compiler
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor_without_a_graph_break(mode: str) -> None:
    net = seed_network().eval()
    compiled = torch.compile(net, fullgraph=True, mode=mode)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), net(images()))


@needs_compiler
def test_inductor_trains_the_same() -> None:
    net = seed_network(dropout=0.0)
    compiled = torch.compile(net, fullgraph=True)
    expected = gradients_of(net, net, images())
    assert_same_numbers(gradients_of(net, compiled, images()), expected)


@needs_compiler
def test_inductor_and_autocast() -> None:
    net = seed_network(dropout=0.0)
    exact = gradients_of(net.double(), net, images().double())
    net.float()
    compiled = torch.compile(net, fullgraph=True)

    def step(call):
        with torch.autocast("cpu", torch.bfloat16):
            return call(images())

    found = gradients_of(net, lambda _: step(compiled), images())
    eager = gradients_of(net, lambda _: step(net), images())
    assert found["logits"].dtype == eager["logits"].dtype == torch.bfloat16
    for name, expected in exact.items():
        # Compiled, fewer intermediates are rounded to bf16, but not always the same ones.
        bound = 2 * relative_error(eager[name], expected) + 4e-3
        assert relative_error(found[name], expected) <= bound, name


def graphs_of(net: nn.Module, *inputs, **options) -> list[torch.fx.GraphModule]:
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(net, backend=keep, **options)
    for input in inputs:
        torch.testing.assert_close(compiled(input), net(input))
    return graphs


def test_the_whole_network_is_one_graph_for_any_batch() -> None:
    net = seed_network().eval()
    graphs = graphs_of(net, images(3), images(9), images(12), fullgraph=True, dynamic=True)
    assert len(graphs) == 1


def test_the_whole_network_is_one_graph_under_autocast_for_any_batch() -> None:
    net, graphs = seed_network().eval(), []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(net, backend=keep, fullgraph=True, dynamic=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for batch in (2, 63, 65):
            assert relative_error(compiled(images(batch)), net(images(batch))) < 2e-2
    assert len(graphs) == 1


def test_a_training_step_in_one_graph_for_any_batch() -> None:
    net = seed_network(dropout=0.0)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 5):
        expected = gradients_of(net, net, images(batch))
        assert_same_numbers(gradients_of(net, compiled, images(batch)), expected)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv3x3(3, 4),
        layers.Conv3x3ReLU(3, 4),
        layers.Conv3x3ReLUPool(3, 4),
        layers.MaxPool2x2(),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("shape", [(2, 3, 7, 6), (3, 5, 8)], ids=["batch", "image"])
def test_each_layer_compiles_with_its_gradients(layer, shape) -> None:
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = []
    for call in (layer, compiled):
        input = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = call(input)
        output.square().sum().backward()
        found.append((output.detach(), input.grad, output.stride()))
    for actual, expected in zip(found[1], found[0], strict=True):
        assert torch.equal(torch.as_tensor(actual), torch.as_tensor(expected))


# ------------------------------------------------------------------------------------- torch.export


def exported(net: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(net, (images(),), dynamic_shapes=({0: batch},))


def test_export_save_load(tmp_path) -> None:
    net = seed_network().eval()
    program = exported(net)
    calls = [str(node.target) for node in program.graph.nodes if "vgg_fast" in str(node.target)]
    assert len(calls) == 8 and set(calls) == set(FUSED_CALLS)

    torch.export.save(program, tmp_path / "seed.pt2")
    loaded = torch.export.load(tmp_path / "seed.pt2")
    for batch in (1, 3, 8):
        # The program is free in its batch, so it multiplies few rows another way than eager does.
        expected = net(images(batch))
        torch.testing.assert_close(program.module()(images(batch)), expected)
        torch.testing.assert_close(loaded.module()(images(batch)), expected)


def test_export_for_training_trains_the_same() -> None:
    net = seed_network(dropout=0.0)
    program = torch.export.export(net, (images(),)).module()
    expected = gradients_of(net, net, images())
    found = gradients_of(program, program, images())
    assert_same_numbers(found, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_exported_without_gradients_trains_the_same(strict: bool) -> None:
    net = seed_network(dropout=0.0)
    with torch.no_grad():
        program = torch.export.export(net, (images(),), strict=strict).module()
    expected = gradients_of(net, net, images())
    assert_same_numbers(gradients_of(program, program, images()), expected)


def test_the_decomposed_program_keeps_the_fused_operators() -> None:
    program = exported(seed_network().eval()).run_decompositions()
    calls = [str(node.target) for node in program.graph.nodes if "vgg_fast" in str(node.target)]
    assert len(calls) == 8


@needs_compiler
def test_aotinductor_package(tmp_path) -> None:
    net = seed_network().eval()
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(net),
            package_path=str(tmp_path / "seed.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # half a minute
        )
        package = torch._inductor.aoti_load_package(path)
        for batch in (1, 3):
            torch.testing.assert_close(package(images(batch)), net(images(batch)))


# -------------------------------------------------------------------------------- the whole network


@needs_compiler
@pytest.mark.slow
def test_the_whole_seed_network_compiled_and_exported() -> None:
    # All channels at 224²; few of the classifier's 120 million weights. Its first layer is our
    # kernel's where the network is called as it is, and torch's in programs: fp64 decides.
    net = seed_network(width=1.0, image_size=224, classifier_width=64).eval()
    input = images(1, 224)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(input.double())
        compiled = torch.compile(net, fullgraph=True)
        program = torch.export.export(net, (input,)).module()
        for model in (net, compiled, program):
            assert relative_error(model(input), exact) < 2e-6
        features = net[:5]
        program = torch.export.export(features, (input,)).module()
        assert torch.equal(program(input), features(input))


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_exported_under_autocast_runs_with_and_without_it(strict: bool) -> None:
    net = seed_network().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(net, (images(3),), strict=strict).module()
        expected = net(images(3))
        assert relative_error(program(images(3)), expected) < 2e-2
    with torch.no_grad():
        assert relative_error(program(images(3)), expected) < 2e-2
