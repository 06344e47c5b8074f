"""What an NVIDIA GPU can show: whether the kernels are right, how fast they are, and why.

``python -m benchmarks.gpu`` runs it. Its own process (``run.py``, ``steps.py``) never touches the
GPU; what does is in others (``pool.py``, ``worker.py``, ``jobs.py``), which may crash or hang.
"""
