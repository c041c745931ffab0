"""`python -m arvid` is the command `arvid`."""

import sys

from arvid.cli import main

sys.exit(main())
