"""Moving the weights of experts while the model serves."""
