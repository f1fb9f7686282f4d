"""How well the model does: what a step calls, what it returns, and a number for it."""
