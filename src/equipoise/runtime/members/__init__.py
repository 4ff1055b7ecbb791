"""Who serves together, and what happens when that changes."""
