"""All benchmarks, one after the other: ``python -m benchmarks [quick]`` (or ``make bench``, ``make bench-quick``).

A quick look leaves out those that are whole runs; each of them has a quick mode of its own.
"""

from benchmarks import (
    algebra,
    attach,
    extract,
    generate,
    imports,
    layer,
    library,
    merge,
    nested_ranks,
    quantize,
    step,
    train,
)
from benchmarks.harness import main

if __name__ == "__main__":
    everything = (imports, layer, step, attach, merge, quantize, algebra, extract, library, generate)
    main(*(each.cases for each in everything), runs=(train.cases, nested_ranks.cases))
