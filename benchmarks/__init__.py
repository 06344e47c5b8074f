"""How fast vgg_fast is beside other ways to compute the same, and how near it is to the machine.

pytest benchmarks            each operator and the network, under pytest-benchmark
python -m benchmarks.run     everything against every peer, interleaved, into results/*.json
python -m benchmarks.report  results/*.json into the tables and pictures of README.md and docs/
python -m benchmarks.floor   what the machine's peak and bandwidth allow for each layer
python -m benchmarks.gpu     the same questions on an NVIDIA GPU
"""
