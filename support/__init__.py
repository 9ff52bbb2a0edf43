"""What a run needs and a reader of the paper does not."""
