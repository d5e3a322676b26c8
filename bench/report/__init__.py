"""Result files, tables and pictures."""
