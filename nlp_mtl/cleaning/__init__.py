"""What is done to texts before words are found in them."""
