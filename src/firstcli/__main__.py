"""`python -m firstcli`, the form that `accelerate launch -m` needs."""

from firstcli.cli import main

main()
