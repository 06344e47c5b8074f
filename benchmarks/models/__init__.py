"""Models of other packages, and forms that people write: does fuse() keep their numbers?

    python -m benchmarks.models        compares and measures them

``collection/`` has the models, ``compare.py`` says whether two of them do the same.
"""
