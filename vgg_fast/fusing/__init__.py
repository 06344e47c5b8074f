"""Makes models that other people wrote faster: ``fuse()`` and back."""

from vgg_fast.fusing.convert import FusionReport, fuse, unfuse

__all__ = ["FusionReport", "fuse", "unfuse"]
