"""MariaDB: procedures, functions and views of the DBA, called by name."""
