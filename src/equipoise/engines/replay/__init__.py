"""The routing that several engines return with each request: the experts of its tokens."""
