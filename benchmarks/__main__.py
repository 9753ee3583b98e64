"""All benchmarks, one after the other: ``python -m benchmarks [quick]`` (or ``make bench``, ``make bench-quick``)."""

from benchmarks import algebra, attach, extract, generate, imports, layer, library, merge, nested_ranks, step, train
from benchmarks.harness import main

if __name__ == "__main__":
    everything = (imports, layer, step, attach, merge, algebra, extract, library, generate, train, nested_ranks)
    main(*(each.cases for each in everything))
