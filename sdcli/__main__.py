"""`python -m sdcli`."""

from sdcli.cli.main import run

run()
