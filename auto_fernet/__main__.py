"""`python -m auto_fernet`: the command `auto-fernet`."""

import sys

from auto_fernet.command import main

if __name__ == "__main__":
    sys.exit(main())
