"""Which copies, and where: planners, bounds and scoring."""
