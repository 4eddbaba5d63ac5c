"""The Optuna side: study file, command line, ask/tell loop, sampler, pruner, resume."""
