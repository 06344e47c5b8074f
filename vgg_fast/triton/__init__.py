"""The operators as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

    conv3x3, conv3x3_relu, conv3x3_relu_pool, max_pool2x2    the operators, as in csrc/cuda
    frozen                                                   those for frozen weights
    forward, backward                                        the kernels and tiles of a pass
    tuning, trial                                            which tile, and one tile tried
    fprop, direct, wgrad, expand, expand_bits                kernels and how they are launched
    epilogue, reduce, patch, window, bits, launch            what several of them share

Each line imports from those below it alone. With ``TRITON_INTERPRET=1`` in the environment before
Python starts, the same kernels run on CPU tensors, slowly.
"""
