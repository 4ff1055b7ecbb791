"""The live view of a running system: what is seen of it, what follows, and how that is drawn."""
