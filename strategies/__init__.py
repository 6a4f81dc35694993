"""How updates become the next backbone: Flower's own strategies behind our validation."""
