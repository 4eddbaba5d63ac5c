"""What a model takes of a machine, and what there is."""
