"""Who decides whether an answer is right."""
