"""From verdicts to the two objectives and what is reported beside them."""
