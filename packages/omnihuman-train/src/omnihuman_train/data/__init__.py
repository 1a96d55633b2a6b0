"""Training data: manifests, shards, buckets and synthetic talking characters."""
