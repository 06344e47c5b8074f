"""Training steps, in fp32 and under bf16 autocast.

pytest benchmarks/test_training.py -k fast-training-b128
"""


def test_training_step(work, peer, measure) -> None:
    measure(work, peer)
