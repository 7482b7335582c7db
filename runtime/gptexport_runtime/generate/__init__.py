"""Text from a graph with a cache: the cache, the choice of a token, the stream of tokens."""
