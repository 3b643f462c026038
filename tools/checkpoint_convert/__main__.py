"""``python -m tools.checkpoint_convert``."""

import sys

from tools.checkpoint_convert.cli import main

sys.exit(main())
