"""Shows a study in optuna-dashboard: its pages, and what they say about our trials."""
