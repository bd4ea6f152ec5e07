"""A trained model made smaller: layers, attention heads, feed-forward units, vocabulary, weights that become 0."""
