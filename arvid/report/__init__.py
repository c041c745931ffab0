"""What is made of result records: the comparison, its tables, its plots and the web page."""
