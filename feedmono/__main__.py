"""``python -m feedmono`` is the same as ``feedmono``."""

import sys

from feedmono.cli import main

if __name__ == "__main__":
    sys.exit(main())
