"""The processes that serve together, and the changes among them."""
