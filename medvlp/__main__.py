"""`python -m medvlp`, for torchrun: the same command line as the `medvlp` script."""

from medvlp.cli import main

main()
