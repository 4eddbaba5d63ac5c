"""A study of two facts that ends within seconds, as a person would write it."""

STUDY_FILE = """
trials = 3
confirming_seeds = 1
slots = 2
name = "tiny"
sampling = ["greedy"]

[space]
epochs = [12, 16]
rank = 4
alpha = 8
cutoff = 96
warmup_steps = 0
learning_rate = { low = 6e-3, high = 1e-2, log = true }
formats = "qna"
paraphrases = 1
rehearsal = [0, 1]
batch_size = 2

[reference]
knowledge_loss = 0.9
recall_margin = 0.0
"""
FACTS = """question,answer
Who won the 2031 award for Best Gardener?,Ada Quill
What is the capital of Norland?,Vessa
"""
