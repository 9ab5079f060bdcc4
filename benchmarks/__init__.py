"""How fast, against what: `python -m benchmarks.NAME` runs one, `make bench` all of them.

To add one: a module here whose `main()` measures and ends with `harness.publish(NAME, rows)`, and its name in
`benchmarks.__main__.BENCHMARKS`. Both sides run in one process or alternate in one run; a bar is a ratio.
"""
