"""``python -m vgg_fast.evaluate RUN``: how well a trained network does, class by class."""

import sys

from vgg_fast.trained.start import start

if __name__ == "__main__":
    sys.exit(start("evaluate"))
