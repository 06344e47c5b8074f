"""``python -m vgg_fast.predict RUN``: what a trained network sees in pictures."""

import sys

from vgg_fast.trained.start import start

if __name__ == "__main__":
    sys.exit(start("predict"))
