"""Teachers: what is said about a state, for demonstrations."""
