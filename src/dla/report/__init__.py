"""How results look: tables, files, pictures."""
