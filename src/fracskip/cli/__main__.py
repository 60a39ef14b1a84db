"""`python -m fracskip.cli`."""

import sys

from fracskip.cli.main import main

sys.exit(main())
