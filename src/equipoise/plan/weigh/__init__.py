"""Whether, how many, what if: plans weighed against what they cost."""
