"""``python -m controls``: print the table of the negative controls."""

import sys

from controls.report import print_controls

if __name__ == "__main__":
    sys.exit(print_controls())
