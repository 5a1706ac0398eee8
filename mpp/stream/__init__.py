"""Shards in, batches out: which sample is read when, its bytes, its pixels, and the loader that hands them over."""
