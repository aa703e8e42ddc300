"""``python -m pvt_ext``: the command ``pvt``, for torchrun and the like."""

from pvt_ext.cli import main

main()
