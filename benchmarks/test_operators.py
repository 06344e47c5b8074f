"""Each operator on each layer of the seed network, forward and backward.

pytest benchmarks/test_operators.py -k conv3x3_relu_pool
"""


def test_operator(work, peer, measure) -> None:
    measure(work, peer)
