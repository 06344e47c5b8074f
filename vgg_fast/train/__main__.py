"""``python -m vgg_fast.train``: the training program, or one sentence about what it lacks."""

# What the extra "train" of pyproject.toml installs; the library itself needs none of it.
EXTRA = ("matplotlib", "numpy", "rich", "torchvision", "tyro")

try:
    from vgg_fast.train import ranks
    from vgg_fast.train.program import main
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in EXTRA:
        raise
    raise SystemExit(
        f"python -m vgg_fast.train: {missing} isn't installed, and the training program needs it: "
        "pip install 'vgg_fast[train]'"
    ) from None

if __name__ == "__main__":
    ranks.leave(main())
