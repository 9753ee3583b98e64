"""All benchmarks, one after the other: ``python -m benchmarks`` (or ``make bench``)."""

from benchmarks import attach, layer, merge, step

for benchmark in (attach, layer, merge, step):
    benchmark.main()
