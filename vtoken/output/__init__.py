"""What commands write: files, tables, curves and progress bars."""

NOTES = "vtoken.notes"  # the logger of what reports note; commands print their reports, and keep it quiet
