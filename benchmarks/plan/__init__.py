"""Whether the CPU kernels' plan takes the fastest algorithm: python -m benchmarks.plan"""
