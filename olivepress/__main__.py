"""`python -m olivepress`: the command line. Started this way, a service has children that need not import it."""

from olivepress.cli import main

main()
