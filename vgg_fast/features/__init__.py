"""Features of VGG networks, and the perceptual losses that compare them."""

from vgg_fast.features.dists import DISTS
from vgg_fast.features.extractor import VGGFeatures
from vgg_fast.features.losses import ContentLoss, StyleLoss, gram_matrix
from vgg_fast.features.lpips import LPIPS

__all__ = ["DISTS", "LPIPS", "ContentLoss", "StyleLoss", "VGGFeatures", "gram_matrix"]
