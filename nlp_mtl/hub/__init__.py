"""Models to the Hub, and into stock checkpoints."""

from nlp_mtl.hub.pushing import push

__all__ = ["push"]
