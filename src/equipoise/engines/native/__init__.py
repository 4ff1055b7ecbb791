"""The project's own file formats."""
