"""Makes the sample beside this file: the first 50 training and test images of each class.

python tests/data/make_sample.py /usr/share/datasets/fashion-mnist
"""

import sys
from pathlib import Path

import torch

from vgg_fast.train import data, idx

PER_CLASS = 50


def main(source: Path) -> None:
    whole = data.load(root=source)
    here = Path(__file__).parent
    for part, split in (("train", whole.train), ("t10k", whole.test)):
        classes = range(len(whole.classes))
        firsts = [(split.labels == c).nonzero()[:PER_CLASS, 0] for c in classes]
        chosen = torch.cat(firsts).sort().values
        idx.write(here / f"{part}-images-idx3-ubyte.gz", split.images[chosen])
        idx.write(here / f"{part}-labels-idx1-ubyte.gz", split.labels[chosen].to(torch.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
