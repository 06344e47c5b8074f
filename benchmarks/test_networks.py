"""Whole networks: inference, and the gradient of the input under frozen weights.

pytest benchmarks/test_networks.py -k seed-forward-b1
"""


def test_network(work, peer, measure) -> None:
    measure(work, peer)
