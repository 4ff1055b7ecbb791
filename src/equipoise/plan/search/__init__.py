"""The search that several planners share."""
