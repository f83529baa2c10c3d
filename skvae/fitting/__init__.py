"""Training loops in torch and skorch."""
