"""The report of a run: tables, figures and the page.

This module imports nothing, so that `firstcli.reporting.terminal` can print a stored table without
the packages that computed it.
"""
