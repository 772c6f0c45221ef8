"""What commands write: files, tables, curves and progress bars."""
