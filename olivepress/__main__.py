"""`python -m olivepress`: the command line. Services are started this way, so that their children need not import it."""

from olivepress.cli import main

main()
