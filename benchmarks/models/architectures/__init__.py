"""Published architectures in their own few lines, where no light package has them."""
