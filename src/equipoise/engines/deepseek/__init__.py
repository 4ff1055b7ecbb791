"""DeepSeek's open balancing data."""
