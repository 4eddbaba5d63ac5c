"""Forward and backward passes over rows that lie end to end."""
