"""Second of three scripts: asks the saved adapter every prompt of a folder, one by one.

`python -m benchmarks.peers.infer FOLDER`
"""

from __future__ import annotations

import sys
from pathlib import Path

from peft import PeftModel

from benchmarks.peers.answering import answer_one_by_one
from benchmarks.peers.work_files import ANSWERS, read_prompts, write_lines
from objectives.models.load import load_base_model
from objectives.models.sources import POCKET

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    base = load_base_model(POCKET, device="cpu")
    adapted = PeftModel.from_pretrained(base.model, folder / "adapter").eval()
    texts = [prompt.text for prompt in read_prompts(folder)]
    write_lines(folder / ANSWERS, answer_one_by_one(adapted, base, texts))
