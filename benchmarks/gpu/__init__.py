"""What an NVIDIA GPU can show: tests, tuning, the figures against their peers, a roofline.

``python -m benchmarks.gpu`` runs it all, each step in a process of its own with seconds of its own:
a kernel that fails, hangs or breaks the CUDA context loses its step, and no other.
"""
