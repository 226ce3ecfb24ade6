"""Every change of the schema, one module each, in one line of descent; Alembic runs those that a database lacks.

A change is a new module ``rNNNN_what.py`` on top of the newest one, together with the same change in `tables`. It is
written for databases full of rows: columns are added, not tables copied. What was released is never edited.
"""
