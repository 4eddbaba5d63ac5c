"""4-bit GPTQ weights: their arithmetic, their checkpoints, and other kernels for them."""
