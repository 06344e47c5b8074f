"""How fast vgg_fast is compared with its peers, and how close it comes to the machine's limits.

pytest benchmarks            operators, blocks, networks, training steps, under pytest-benchmark
python -m benchmarks.run     everything against every peer, interleaved, into results/*.json
python -m benchmarks.growth  how cost grows with the batch, the image, the width and the threads
python -m benchmarks.report  results/*.json into the tables and pictures of README.md and docs/
python -m benchmarks.counts  instructions of the CPU kernels against the committed counts (valgrind)
python -m benchmarks.floor   what the machine's peak and bandwidth allow for each layer
python -m benchmarks.amx_probe  whether fp32 gains from Intel's matrix tiles
python -m benchmarks.models  third-party models: does fuse() keep their numbers, what it gains
python -m benchmarks.gpu     the same questions on an NVIDIA GPU
"""
