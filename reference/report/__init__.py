"""One kit for every report: parts (words, tables, plots) on a terminal, in a page, in Markdown."""
