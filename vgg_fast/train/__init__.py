"""The training program, ``python -m vgg_fast.train``, and what only it needs."""
