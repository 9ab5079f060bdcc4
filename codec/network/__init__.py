"""The float codec: transforms, entropy bottleneck, sizes."""
