"""The live view of a running system: reading it, following it, and drawing it."""
