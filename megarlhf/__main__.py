"""``python -m megarlhf`` is the command ``megarlhf``."""

import sys

from megarlhf.cli import main

sys.exit(main())
