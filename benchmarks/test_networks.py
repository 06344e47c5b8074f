"""Whole networks: inference, a training step, the gradient of the input.

pytest benchmarks/test_networks.py -k network-forward-b1
"""


def test_network(work, peer, measure) -> None:
    measure(work, peer)
