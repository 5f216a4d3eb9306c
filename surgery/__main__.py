"""``python -m surgery`` is the program ``surgery``."""

import sys

from surgery.cli import main

sys.exit(main())
