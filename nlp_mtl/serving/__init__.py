"""A model behind HTTP: requests that arrive together share batches. The extra ``serve``."""
