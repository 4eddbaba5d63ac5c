"""What a trial does: load, train, answer, judge, measure. The only folder that imports torch."""
