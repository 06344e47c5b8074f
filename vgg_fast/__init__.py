"""vgg_fast"""
