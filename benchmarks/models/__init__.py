"""Models of other packages, and forms that people write: does fuse() keep their numbers?

    python -m benchmarks.models --only 'lpips|piq'     compares and measures these
    python -m benchmarks.models --rounds 0             only compares, all of them

``collection/`` has the models, ``compare.py`` says whether two of them do the same.
"""
