"""Base models: loading them, and making the pocket model."""
