"""The database is the truth: tables, sessions and the queries that change a state."""
