"""Facts, formats, prompts, probes and the words that all folders share."""
