"""What the planners that search have in common."""
