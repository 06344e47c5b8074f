"""The operators as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

One file per operator, named as in ``csrc/cuda``; ``fprop``, ``wgrad``, ``reduce`` and ``window``
hold what several of them share. With ``TRITON_INTERPRET=1`` in the environment before Python
starts, the same kernels run on CPU tensors, slowly.
"""
