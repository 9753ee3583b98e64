"""Benchmarks: weft, peers and the limit in one process, taking turns; results are kept as data.

``python -m benchmarks`` runs all of them, ``python -m benchmarks.NAME`` one, each with ``quick`` for a minute's worth,
and ``python -m benchmarks.report`` writes ``docs/performance.md`` from the data.
"""
