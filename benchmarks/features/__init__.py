"""Perceptual losses: their time, their peak memory, and what they keep for the backward pass.

    python -m benchmarks.features --quick          shows that everything runs, and measures nothing
    python -m benchmarks.features --only 'lpips'   one of them

``losses.py`` has the losses as each package has them, ``work.py`` what is done with them.
"""
