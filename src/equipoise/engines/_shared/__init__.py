"""What the formats of several engines have in common."""
