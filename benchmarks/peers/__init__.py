"""How the same work is done with transformers, PEFT and Optuna alone, in their fast settings."""

import warnings

# PEFT still reads an attribute of models that transformers has renamed.
warnings.filterwarnings(
    "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
)
# A base model that was unwrapped and is wrapped again is what "base kept" means.
warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT")
