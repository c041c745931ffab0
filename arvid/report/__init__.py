"""Reports from result records: comparison, tables, plots and the web page."""
