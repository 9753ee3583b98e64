"""All benchmarks, one after the other: ``python -m benchmarks`` (or ``make bench``)."""

from benchmarks import attach, merge

for benchmark in (attach, merge):
    benchmark.main()
