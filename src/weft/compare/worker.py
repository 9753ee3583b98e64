"""``python -m weft.compare.worker JOB OUTPUT FOUND``: does the job of one file, and writes what it found to another."""

import json
import sys
import warnings
from pathlib import Path

from transformers.utils import logging

from weft.compare.job import Job
from weft.compare.measure import measure
from weft.training.folder import write_whole


def main(job: Path, output: Path, found: Path) -> None:
    """Reads, measures, writes."""
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    values = json.loads(job.read_text(encoding="utf-8"))
    result = measure(Job.from_dict(values, output))
    write_whole(found, json.dumps({"job": values, "found": result.to_dict()}, indent=2))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
