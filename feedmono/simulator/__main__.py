"""``python -m feedmono.simulator``: the same as ``feedmono sim``."""

from __future__ import annotations

import argparse
import sys

from feedmono.simulator import cli


def main() -> int:
    parser = argparse.ArgumentParser(prog="feedmono sim", description=cli.__doc__)
    cli.add_arguments(parser)
    return cli.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
