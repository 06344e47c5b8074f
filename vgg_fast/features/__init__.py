"""Features of VGG networks, and the perceptual losses that compare them."""

from vgg_fast.features.extractor import VGGFeatures
from vgg_fast.features.losses import ContentLoss, StyleLoss, gram_matrix

__all__ = ["ContentLoss", "StyleLoss", "VGGFeatures", "gram_matrix"]
