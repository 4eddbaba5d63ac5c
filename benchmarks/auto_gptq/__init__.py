"""Shows that our GPTQ reader computes what auto-gptq computes, on checkpoints of both layouts."""
