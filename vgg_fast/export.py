"""``python -m vgg_fast.export RUN``: a trained network in a format that other programs load."""

import sys

from vgg_fast.trained.start import start

if __name__ == "__main__":
    sys.exit(start("export"))
