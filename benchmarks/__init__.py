"""Benchmarks: weft, a peer and the limit in one process, interleaved; results are kept as data."""
