"""The float codec: transforms, entropy bottleneck, complexity."""
