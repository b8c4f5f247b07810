"""The benchmark: what feedmono costs beside the obvious program, measured from outside.

``scripts/bench`` runs it: `__main__` says what is measured, `rig` starts what it takes, `run`
measures with `usage` and `latency`, `count` reads everything back, `tables` and `plot` show it.
``scripts/callgrind`` counts instructions: `callgrind` has `stages` run under valgrind.
"""
