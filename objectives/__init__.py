"""What a trial does: load, train, answer, judge, measure. The only folder that imports torch."""

import os

# Read by GNU OpenMP when torch is loaded. Its threads wait for each other by spinning, by default
# for 300,000 rounds; where something else runs on a core, a step of a small model then takes ten
# times as long. Longer than a kernel's gaps and shorter than a time slice is fast in both cases.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
