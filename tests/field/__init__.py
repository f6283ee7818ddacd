"""Cases from the field: an installed wheel in unusual places, locales and limits, with unusual files, and signals.

`python -m tests.field [PATTERN ...]`, or `make field`, runs the cases whose names contain a pattern, prints a table and
exits with status 1 if one fails. `cases_*.py` are tables of cases; `case.py` describes their fields. Every case also
expects no traceback. Cases that mount file systems or change the user run in mount namespaces of Linux, which need root
or user namespaces; they are skipped elsewhere.
"""
