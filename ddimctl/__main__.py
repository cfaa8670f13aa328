"""``python -m ddimctl``."""

from ddimctl.cli.app import main

main()
