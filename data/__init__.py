"""Facts, scenarios, formats, prompts, probes and the words all folders share; imports nothing of ours."""
