"""What docs/performance/models.md says of the records of benchmarks.models."""

from __future__ import annotations

from benchmarks.pictures import dots
from tests.support.records import MODELS, model, models_record
from tests.support.report import made, put


def test_models_of_other_people(root) -> None:
    put(root, "models-a.json", models_record(MODELS))
    pages = made(root)
    models = pages["models"]
    line = (
        "- `vgg_fast.fuse(model)`: 4 of 6 models compute the same; times as fast, geometric means: "
        "**2.00** forward (1 of 3 are below 0.95), **1.64** forward and backward "
        "(1 of 2 are below 0.95). On 2 threads of Invented CPU (avx2), torch 2.15.0, 2026-01-02"
    )
    assert line in models
    # In the summary, and in place of a table.
    assert models.count("relative to `torch.compile(model)`: not measured yet.") == 2
    assert models.count("](../images/speedup-models.svg)") == 1
    assert "On CPUs: not measured yet." in pages["networks"]  # it is no record of benchmarks.run
    assert "| torchvision.vgg16 | 1.2 | 4 | 3 | yes | 2e-06 | 2.00 | 3.00 |\n" in models
    assert "| torchvision.resnet18 | 1.2 | 4 | 3 | yes | 2e-06 | 0.50 | – |\n" in models
    assert "| lpips.wrong | 1.2 | 4 | 3 | NO | 2e-06 | – | – |\n" in models
    assert "| lpips.raises | 1.2 | – | – | – | – | – | – |\n" in models
    assert "- lpips.wrong: result has another dtype\n- lpips.raises: ValueError: no\n" in models
    assert "- absent.one, absent.two: absent isn't installed\n" in models
    images = root / "docs" / "images"
    assert [path.name for path in images.iterdir()] == ["speedup-models.svg"]


def test_the_compile_backend_has_a_record_of_its_own(root) -> None:
    rows = [model("torchvision.vgg16", 1.5, 1.25, replaced=None)]
    put(root, "models-vgg_fast-a.json", models_record(rows, backend="vgg_fast"))
    models = made(root)["models"]
    assert "- `vgg_fast.fuse(model)`: not measured yet.\n" in models
    assert (
        '- `torch.compile(model, backend="vgg_fast")`, relative to `torch.compile(model)`: 1 of 1 '
        "models compute the same; times as fast, geometric means: **1.50** forward (0 of 1 are "
        "below 0.95), **1.25** forward and backward"
    ) in models
    assert "| torchvision.vgg16 | 1.2 | 4 | – | yes | 2e-06 | 1.50 | 1.25 |\n" in models
    assert "../images/speedup-models-vgg_fast.svg" in models
    assert "speedup-models.svg" not in models


def test_only_the_newest_record_of_all_models_counts(root) -> None:
    faster = [model("torchvision.vgg16", 4.0)]
    later = {"date": "2026-02-01T00:00:00+00:00"}
    options = models_record(faster)["options"]
    put(root, "models-a.json", models_record(MODELS))
    put(root, "models-b.json", models_record(faster, date="2025-12-31T00:00:00+00:00"))
    put(root, "models-c.partial.json", models_record(faster, **later))
    for name, part in {
        "d": {"only": "vgg"},
        "e": {"size": "small"},
        "f": {"rounds": 0},
        "g": {"training": True},
    }.items():
        put(root, f"models-{name}.json", models_record(faster, options=options | part, **later))
    models = made(root)["models"]
    assert "**2.00** forward" in models and "4.00" not in models
    put(root, "models-h.json", models_record(faster, **later))
    assert "**4.00** forward" in made(root)["models"]


def test_the_picture_has_a_line_for_each_package_and_names_its_extremes() -> None:
    figure = dots.models(models_record([*MODELS, model("torchvision.vgg11", 1.5, 1.5)]))
    axes = figure.axes[0]
    # By their means, and what is from no package last; those without a ratio aren't there.
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "torchvision",
        "written without a package",
    ]
    named = [text.get_text() for text in axes.texts]
    assert named == ["vgg16", "resnet18", "vgg16", "vgg11", "unet", "unet"]
    assert dots.models(models_record([model("torchvision.mobilenet", 1.0, eligible=0)])) is None
