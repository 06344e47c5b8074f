"""``python -m vgg_fast.demo RUN``: a page on which a trained network can be tried."""

import sys

from vgg_fast.trained.start import start

if __name__ == "__main__":
    sys.exit(start("demo"))
