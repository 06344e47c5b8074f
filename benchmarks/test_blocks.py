"""Each block of the seed network with more than one layer, forward and backward.

pytest benchmarks/test_blocks.py -k 256-512-28
"""


def test_block(work, peer, measure) -> None:
    measure(work, peer)
