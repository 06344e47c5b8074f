"""How fast vgg_fast is beside other ways to compute the same, and how near it is to the machine.

pytest benchmarks            operators, blocks, networks, training steps, under pytest-benchmark
python -m benchmarks.run     everything against every peer, interleaved, into results/*.json
python -m benchmarks.growth  how cost grows with the batch, the image, the width and the threads
python -m benchmarks.report  results/*.json into the tables and pictures of README.md and docs/
python -m benchmarks.counts  instructions of the CPU kernels beside the committed ones (valgrind)
python -m benchmarks.floor   what the machine's peak and bandwidth allow for each layer
python -m benchmarks.gpu     the same questions on an NVIDIA GPU
"""
