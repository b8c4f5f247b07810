"""``python -m feedmono`` is the same as ``feedmono``: both begin here."""

import signal
import sys

# Ctrl-C while the imports run just ends the process: as an exception it would show a stack, or
# be lost in a library's destructor.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from feedmono.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
