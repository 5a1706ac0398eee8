"""Numbers in, pages out: pictures of what a model sees, curves, and tables."""
