"""`python -m glia_rt` is `glia-rt`."""

import sys

from glia_rt.cli.main import main

sys.exit(main())
