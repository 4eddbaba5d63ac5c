"""Third of three scripts: judges the answers in a folder and prints recall and knowledge loss.

`python -m benchmarks.peers.judge FOLDER`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.peers.scores import judge_texts, score
from benchmarks.peers.work_files import ANSWERS, BASE_ANSWERS, read_prompts, read_texts

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    prompts = read_prompts(folder)
    base, adapted = (
        judge_texts(prompts, read_texts(folder / file)) for file in (BASE_ANSWERS, ANSWERS)
    )
    print(json.dumps(score(base, adapted)))
