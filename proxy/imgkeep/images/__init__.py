"""The hot path: finds an image, fills it on a miss, delivers it; and what clients and operators do to stored images."""
