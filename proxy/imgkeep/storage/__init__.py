"""The stores of images, and the caches before them."""
