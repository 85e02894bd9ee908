"""The benchmark: suites of tasks over encoders, statistics, report."""
