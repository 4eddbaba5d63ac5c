"""Free generation for many prompts and many adapters in one batch."""
