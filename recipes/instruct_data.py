"""Chat rows for `recipes/instruct.yaml`: what a function of this Python's standard library does.

python recipes/instruct_data.py     # writes recipes/instruct.jsonl
"""

import json
import random
from pathlib import Path

from weft.demo.stdlib import functions

ROWS = 400
OUTPUT = Path(__file__).with_name("instruct.jsonl")


def main(path: Path = OUTPUT) -> None:
    """Writes the rows to `path`."""
    chosen = random.Random(0).sample(functions(), ROWS)
    with path.open("w", encoding="utf-8") as file:
        for f in chosen:
            question = {"role": "user", "content": f"What does {f.name} in {f.module} do?"}
            answer = {"role": "assistant", "content": f.summary}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    print(f"{path}: {ROWS} rows")


if __name__ == "__main__":
    main()
