"""All benchmarks, one after the other: ``python -m benchmarks [quick]`` (or ``make bench``, ``make bench-quick``)."""

from benchmarks import algebra, attach, extract, generate, imports, layer, merge, step, train
from benchmarks.harness import main

if __name__ == "__main__":
    main(*(each.cases for each in (imports, layer, step, attach, merge, algebra, extract, generate, train)))
