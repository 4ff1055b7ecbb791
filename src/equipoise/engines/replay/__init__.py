"""What several engines return for each request: the experts of its tokens."""
