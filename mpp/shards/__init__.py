"""Corpus to tars: the shard format, what writes it and what opens it."""
