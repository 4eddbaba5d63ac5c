"""First of three scripts: trains one adapter on the job in a folder and saves it there.

`python -m benchmarks.peers.train FOLDER`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.peers.trainer import train_with_trainer
from benchmarks.peers.work_files import read_job
from benchmarks.text_batches import batch_texts
from objectives.models.load import load_base_model
from objectives.models.sources import POCKET

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    base = load_base_model(POCKET, device="cpu")
    job = read_job(folder)
    batches = batch_texts(base, job.recipe, job.epoch_texts)
    begun = time.perf_counter()
    adapted, _ = train_with_trainer(base.source, job.recipe, batches, pad_id=base.pad_id)
    print(time.perf_counter() - begun)
    adapted.save_pretrained(folder / "adapter")
